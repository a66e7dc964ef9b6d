"""`llmemb export`: the final item table in a format that other systems read, with ids, a card and a check."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np

from llmemb_cli.config.rat import settings_of_run
from llmemb_cli.embeddings.export_card import card_text, provenance
from llmemb_cli.embeddings.export_place import bring_back, check_target, set_aside
from llmemb_cli.embeddings.table import read_ids
from llmemb_cli.errors import BadDataError, MissingError
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.stage import Stage, check_contents, partial_path, read_manifest, require_stage
from llmemb_cli.workspace.store import (
    atomic_path,
    made_again,
    read_tensors,
    sha256_file,
    write_json,
    write_parquet,
    write_tensors,
    write_text,
)

if TYPE_CHECKING:
    import polars as pl

Format = Literal["parquet", "npy", "safetensors", "word2vec", "usearch", "faiss"]
Metric = Literal["ip", "cosine"]
VERSION = 1
RECALL_QUERIES, RECALL_AT = 500, 10
HNSW_NEIGHBOURS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 128
LINES_AT_ONCE = 4096
QUERIES_AT_ONCE = 50
# Insertion order decides the graph of an index: one thread makes the same file each time, but is slow for many items.
ONE_THREAD_UP_TO = 50_000


@dataclass(frozen=True)
class ItemTable:
    """The vectors of all items, and what is added to an item's score whatever the user (BERT4Rec).

    Attributes:
        item_ids: (n,) the user's own ids.
        vectors: (n, d) float32.
        bias: (n,) float32, or None.
    """

    item_ids: pl.Series
    vectors: np.ndarray
    bias: np.ndarray | None = None


def read_items(directory: Path) -> ItemTable:
    """The item table of a run (`runs/<run>`) or of LLM embeddings (`embeddings/<name>`).

    Raises:
        WrongUseError: it has not been made.
        BadDataError: it is damaged.
    """
    manifest = require_stage(directory, made_by="llmemb rat")
    name = "item_embeddings" if manifest["stage"] == "rat" else "embeddings"
    vectors = read_tensors(directory / f"{name}.safetensors", made_again(directory))[name].float().numpy()
    item_ids = read_ids(directory)
    if len(item_ids) != len(vectors):
        raise BadDataError(f"{len(vectors)} vectors for {len(item_ids)} items", where=str(directory))
    return ItemTable(item_ids, vectors, _item_bias(directory / "model.safetensors"))


def _item_bias(weights: Path) -> np.ndarray | None:
    """(n,) float32 from a recommender's weights, without reading the other weights."""
    from safetensors import SafetensorError, safe_open

    if not weights.is_file():
        return None
    try:
        with safe_open(weights, framework="pt") as file:
            return file.get_tensor("bias")[1:].float().numpy() if "bias" in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise BadDataError(
            f"not a safetensors file: {error}", where=str(weights), hint=made_again(weights.parent)
        ) from error


def make_export(
    workspace: Workspace,
    source: Path,
    format: Format,
    report: Reporter,
    *,
    metric: Metric | None = None,
    output: Path | None = None,
    force: bool = False,
) -> StageResult:
    """Write the item table of the run or embeddings in `source` into a directory of its own, and read it back.

    Args:
        metric: of ANN indexes: inner product or cosine; default: what the run scores with, inner product else.
        output: the directory; default: `exports/<name>-<format>` in the workspace.
        force: make it again though nothing has changed, or in the place of an export of another source or format;
            what lies in `output` beside the export stays.

    Raises:
        WrongUseError: `output` holds files that are no export, or, without `force`, another export or more than one.
        MissingError: the package for the format is not installed.
        BadDataError: what was read back is not what was written.
    """
    target = output.resolve() if output else workspace.root / "exports" / f"{source.name}-{format}"
    metric = metric or _metric_of(source)
    settings: dict[str, Any] = {"format": format}
    if format in ("usearch", "faiss"):
        settings["metric"] = metric
    stage = Stage("export", target, VERSION, settings, inputs={"source": source, "data": workspace.data})
    check_target(stage, source.name, force)

    def build(work: Path) -> dict[str, Any]:
        check_contents(source)
        table = read_items(source)
        made = WRITERS[format](work, table, metric)
        summary: dict[str, Any] = {
            "source": source.name,
            "items": len(table.item_ids),
            "width": table.vectors.shape[1],
            "bias": table.bias is not None,
            "temperature": _temperature_of(source),
            **settings,
            **made,
            **provenance(workspace, source),
        }
        names = sorted(path.name for path in work.iterdir() if path.name not in ("partial.json", "card.md"))
        summary["files"] = [
            {"name": n, "bytes": (work / n).stat().st_size, "sha256": sha256_file(work / n)} for n in names
        ]
        write_text(work / "card.md", card_text(summary))
        write_json(work / "card.json", summary)
        # Last, as the directory is replaced as a whole right after this.
        set_aside(work, target)
        return summary

    try:
        if read_manifest(partial_path(stage)) is not None:  # it was finished, and ended before it was put there
            set_aside(partial_path(stage), target)
        return run_stage(stage, build, force=force, report=report)
    finally:
        bring_back(target)


def _metric_of(source: Path) -> Metric:
    """What the run in `source` scores items with: an index by another metric would find other items."""
    return "ip" if _temperature_of(source) is None else "cosine"


def _temperature_of(source: Path) -> float | None:
    """What the run in `source` divides cosines by; None for inner products, and for what is no run."""
    manifest = read_manifest(source)
    trained = settings_of_run(manifest) if manifest is not None and manifest["stage"] == "rat" else None
    return trained.temperature if trained and trained.scores_cosines else None


def _same(ours: np.ndarray, back: np.ndarray, path: Path) -> None:
    if ours.shape != back.shape or not np.array_equal(ours, back):
        raise BadDataError("what was read back is not what was written", where=str(path))


def _write_ids(work: Path, table: ItemTable, **more: Any) -> None:
    """`ids.parquet`: row r of the matrix, or key r of the index, is item_id[r]."""
    import polars as pl

    columns = {"row": np.arange(len(table.item_ids)), "item_id": table.item_ids} | more
    if table.bias is not None:
        columns["bias"] = table.bias
    write_parquet(work / "ids.parquet", pl.DataFrame(columns))
    if not read_ids(work).equals(table.item_ids):
        raise BadDataError("the ids read back are not those written", where=str(work / "ids.parquet"))


def _parquet(work: Path, table: ItemTable, metric: Metric) -> dict[str, Any]:
    import polars as pl

    path = work / "item_embeddings.parquet"
    frame = pl.DataFrame({"item_id": table.item_ids, "embedding": pl.Series(table.vectors)})
    if table.bias is not None:
        frame = frame.with_columns(pl.Series("bias", table.bias))
    write_parquet(path, frame)
    back = pl.read_parquet(path)
    if not back["item_id"].equals(table.item_ids):
        raise BadDataError("the ids read back are not those written", where=str(path))
    _same(table.vectors, back["embedding"].to_numpy(), path)
    return {"checked": "read back, equal to the last bit"}


def _npy(work: Path, table: ItemTable, metric: Metric) -> dict[str, Any]:
    path = work / "item_embeddings.npy"
    with atomic_path(path) as part, part.open("wb") as file:
        np.save(file, np.ascontiguousarray(table.vectors), allow_pickle=False)
    _write_ids(work, table)
    _same(table.vectors, np.load(path, allow_pickle=False), path)
    return {"checked": "read back, equal to the last bit"}


def _safetensors(work: Path, table: ItemTable, metric: Metric) -> dict[str, Any]:
    import torch

    path = work / "item_embeddings.safetensors"
    tensors = {"item_embeddings": torch.from_numpy(np.ascontiguousarray(table.vectors))}
    if table.bias is not None:
        tensors["item_bias"] = torch.from_numpy(np.ascontiguousarray(table.bias))
    write_tensors(path, tensors)
    _write_ids(work, table)
    _same(table.vectors, read_tensors(path)["item_embeddings"].numpy(), path)
    return {"checked": "read back, equal to the last bit"}


def _words(item_ids: list[str]) -> list[str]:
    """Ids as words of the text format, which spaces and line ends would break: then all are percent-encoded."""
    if not any(re.search(r"\s", item) or not item for item in item_ids):
        return item_ids
    return [re.sub(r"[\s%]", lambda found: quote(found.group()), item) or "%" for item in item_ids]


def _word2vec(work: Path, table: ItemTable, metric: Metric) -> dict[str, Any]:
    import polars as pl

    path = work / "item_embeddings.txt"
    ids = [str(item) for item in table.item_ids.to_list()]
    words = _words(ids)
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(words)} {table.vectors.shape[1]}\n")
        for start in range(0, len(words), LINES_AT_ONCE):
            # The shortest text that gives the same float32 again.
            block = table.vectors[start : start + LINES_AT_ONCE].astype(str).tolist()
            chosen = words[start : start + LINES_AT_ONCE]
            file.writelines(f"{word} {' '.join(row)}\n" for word, row in zip(chosen, block, strict=True))
    _write_ids(work, table, word=pl.Series(words))
    with path.open(encoding="utf-8", newline="\n") as file:
        next(file)
        for row, line in enumerate(file):
            word, *numbers = line.rstrip("\n").split(" ")
            if word != words[row]:
                raise BadDataError("the ids read back are not those written", where=str(path))
            _same(table.vectors[row], np.array(numbers, dtype=np.float32), path)
    encoded = sum(word != item for word, item in zip(words, ids, strict=True))
    return {"checked": "read back, equal to the last bit", "encoded_ids": encoded}


def _usearch(work: Path, table: ItemTable, metric: Metric) -> dict[str, Any]:
    try:
        from usearch.index import Index
    except ImportError:
        raise MissingError("usearch is not installed", hint="pip install 'llmemb[ann]'") from None
    path = work / "item_embeddings.usearch"
    index = Index(
        ndim=table.vectors.shape[1],
        metric="ip" if metric == "ip" else "cos",
        dtype="f32",
        connectivity=HNSW_NEIGHBOURS,
        expansion_add=HNSW_BUILD,
        expansion_search=HNSW_SEARCH,
    )
    index.add(np.arange(len(table.vectors)), np.ascontiguousarray(table.vectors), threads=_threads(table))
    with atomic_path(path) as part:
        index.save(str(part))
    _write_ids(work, table)
    back = Index.restore(str(path))
    if back is None:
        raise BadDataError("the index cannot be read back", where=str(path))
    back.expansion_search = HNSW_SEARCH
    _same(table.vectors, np.asarray(back.get(np.arange(len(table.vectors)))), path)

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        return np.asarray(back.search(queries, k).keys).reshape(len(queries), -1).astype(np.int64)

    return _index_check(table.vectors, metric, search)


def _faiss(work: Path, table: ItemTable, metric: Metric) -> dict[str, Any]:
    try:
        import faiss
    except ImportError:
        raise MissingError("faiss is not installed", hint="pip install 'llmemb[ann]'") from None
    path = work / "item_embeddings.faiss"
    vectors = np.ascontiguousarray(_normalised(table.vectors) if metric == "cosine" else table.vectors)
    index = faiss.IndexHNSWFlat(vectors.shape[1], HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    index.hnsw.efSearch = HNSW_SEARCH
    # PyTorch shares the count: left changed, training in the same process would round differently afterwards.
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(_threads(table))
    try:
        index.add(vectors)
    finally:
        faiss.omp_set_num_threads(before)
    with atomic_path(path) as part:
        faiss.write_index(index, str(part))
    _write_ids(work, table)
    back: Any = faiss.read_index(str(path))
    back.hnsw.efSearch = HNSW_SEARCH
    _same(vectors, back.reconstruct_n(0, len(vectors)), path)

    def search(queries: np.ndarray, k: int) -> np.ndarray:
        wanted = _normalised(queries) if metric == "cosine" else queries
        return np.asarray(back.search(np.ascontiguousarray(wanted), k)[1])

    return _index_check(table.vectors, metric, search)


def _threads(table: ItemTable) -> int:
    return 1 if len(table.vectors) <= ONE_THREAD_UP_TO else os.cpu_count() or 1


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _index_check(
    vectors: np.ndarray, metric: Metric, search: Callable[[np.ndarray, int], np.ndarray]
) -> dict[str, Any]:
    """Share of the true nearest ten that the index finds, over items spread evenly through the table."""
    unit = _normalised(vectors) if metric == "cosine" else vectors
    queries = np.unique(np.linspace(0, len(vectors) - 1, min(RECALL_QUERIES, len(vectors))).astype(int))
    k = min(RECALL_AT, len(vectors))
    found = search(vectors[queries], k)
    right = 0
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        scores = unit[queries[block]] @ unit.T
        worst = np.partition(scores, -k, axis=1)[:, -k]
        # Equal scores are interchangeable, and an index rounds sums in another order.
        slack = 1e-5 * np.abs(worst) + 1e-12
        got = np.take_along_axis(scores, np.maximum(found[block], 0), axis=1)
        right += int(((got >= (worst - slack)[:, None]) & (found[block] >= 0)).sum())
    recall = right / (len(queries) * k)
    return {
        "checked": f"vectors read back, equal to the last bit; recall@{k} of the index {recall:.4f}",
        "recall": recall,
    }


WRITERS: dict[str, Callable[[Path, ItemTable, Metric], dict[str, Any]]] = {
    "parquet": _parquet,
    "npy": _npy,
    "safetensors": _safetensors,
    "word2vec": _word2vec,
    "usearch": _usearch,
    "faiss": _faiss,
}
