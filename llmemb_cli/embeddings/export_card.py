"""The card beside an exported table: where it comes from, under which licences, and how to read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmemb_cli.assets.presets import MODELS
from llmemb_cli.config.runs import vectors_read
from llmemb_cli.embeddings.table import EXTERNAL
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest, require_stage

MADE_ELSEWHERE = "vectors made elsewhere"
READING = {
    "parquet": 'polars.read_parquet("item_embeddings.parquet")  # item_id, embedding',
    "npy": 'numpy.load("item_embeddings.npy")  # row r belongs to item_id[r] of ids.parquet',
    "safetensors": (
        'safetensors.numpy.load_file("item_embeddings.safetensors")["item_embeddings"]  # rows as in ids.parquet'
    ),
    "word2vec": 'gensim.models.KeyedVectors.load_word2vec_format("item_embeddings.txt")',
    "usearch": 'usearch.index.Index.restore("item_embeddings.usearch")  # key r is item_id[r] of ids.parquet',
    "faiss": 'faiss.read_index("item_embeddings.faiss")  # number r is item_id[r] of ids.parquet',
}


def provenance(workspace: Workspace, source: Path) -> dict[str, Any]:
    """Settings and licences behind a run or LLM embeddings, as far as the manifests tell."""
    manifest = require_stage(source, made_by="llmemb rat")
    card = require_stage(workspace.data, made_by="llmemb init")["summary"]
    model = _model(workspace, manifest)
    preset = MODELS.get(model or "")
    return {
        "stage": manifest["stage"],
        "made": manifest["made"],
        "llmemb": manifest["llmemb"],
        "seed": manifest["made_from"]["seed"],
        "settings": manifest["made_from"]["settings"],
        "fingerprint": manifest["fingerprint"],
        "data": {
            "dataset": card["dataset"],
            "edition": card["source"]["edition"],
            "licence": card["source"]["licence"],
        },
        "model": None
        if model is None
        else {"name": model, "licence": preset.licence if preset else "not known to llmemb: see where it came from"},
    }


def _model(workspace: Workspace, manifest: dict[str, Any]) -> str | None:
    """The LLM behind a stage, by following its inputs; None where no LLM took part."""
    own = manifest["made_from"]["settings"].get("model")
    if own is not None:
        return str(own)
    if manifest["stage"] == EXTERNAL:
        return MADE_ELSEWHERE
    wanted = vectors_read(manifest)
    for folder in sorted((workspace.root / "embeddings").glob("*")):
        found = read_manifest(folder)
        if found is not None and wanted is not None and found["fingerprint"] == wanted:
            return str(found["made_from"]["settings"].get("model", MADE_ELSEWHERE))
    return "not known: its embeddings are no longer in the workspace" if wanted is not None else None


def card_text(summary: dict[str, Any]) -> str:
    """The card as Markdown."""
    files = "\n".join(f"| `{f['name']}` | {f['bytes']:,} | `{f['sha256']}` |" for f in summary["files"])
    settings = "\n".join(f"| {key} | {value} |" for key, value in sorted(summary["settings"].items()))
    data, model = summary["data"], summary["model"]
    llm = "none took part" if model is None else f"{model['name']}; licence: {model['licence']}"
    bias = f"\n{_scores(summary['temperature'])}\n" if summary["bias"] else ""
    seed = "" if summary["seed"] is None else f", seed {summary['seed']}"
    index = ""
    if "metric" in summary:
        kind = "inner product, as the recommender scores" if summary["metric"] == "ip" else "cosine"
        index = f"\nThe index finds neighbours by {kind}; it is approximate (HNSW).\n"
    return f"""# Item embeddings: {summary["source"]}

{summary["items"]:,} items, {summary["width"]} numbers each (float32). Check after writing: {summary["checked"]}.

```python
{READING[summary["format"]]}
```
{bias}{index}
## Files

| file | bytes | sha256 |
|---|---|---|
{files}

## Where it comes from

Stage {summary["stage"]}{seed}, made {summary["made"]} by llmemb {summary["llmemb"]},
fingerprint `{summary["fingerprint"]}`.

- Data: {data["dataset"]}, edition {data["edition"]}; licence: {data["licence"]}
- LLM: {llm}

| setting | value |
|---|---|
{settings}
"""


def _scores(temperature: float | None) -> str:
    """How a recommender with a bias an item scores."""
    if temperature is None:
        product = "inner products of the user's state and the vectors"
    else:
        product = f"cosines of the user's state and the vectors, divided by {temperature:g},"
    return f"Scores of this recommender are {product} plus the item's `bias`."
