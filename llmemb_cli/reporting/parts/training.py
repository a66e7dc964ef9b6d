"""The report's parts on training: fine-tuning of the LLM, what it did to the items' similarity, the recommenders."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.document import known_runs
from llmemb_cli.evaluation.spaces import space_of_items, unit_vectors
from llmemb_cli.reporting import figures
from llmemb_cli.reporting.figures import Figure
from llmemb_cli.reporting.variants import BACKBONES, METHOD_PLACES, Variant
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import LOG, read_manifest
from llmemb_cli.workspace.store import read_jsonl

PAIRS = 20_000
BINS = 60
MOST_RUNS = 8


def series_of(records: list[dict[str, Any]], at: str) -> dict[str, tuple[list[float], list[float]]]:
    """Every number in a log as a curve over `at`; a number inside `{"held_out": {"loss": 1}}` is `held_out loss`."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        flat: dict[str, Any] = {}
        for key, value in record.items():
            flat |= (
                {f"{key} {inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
            )
        for key, value in flat.items():
            if key != at and at in record and isinstance(value, (int, float)) and not isinstance(value, bool):
                xs, ys = curves.setdefault(key, ([], []))
                xs.append(record[at])
                ys.append(value)
    return curves


def _long(curves: dict[str, tuple[list[float], list[float]]], name: str, at: str) -> dict[str, list[Any]]:
    """Curves as rows (curve, x, y)."""
    rows = [(key, x, y) for key, (xs, ys) in curves.items() for x, y in zip(xs, ys, strict=True)]
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    return dict(zip((name, at, "value"), (list(column) for column in columns), strict=True))


def scft_part(workspace: Workspace) -> dict[str, Any] | None:
    """Curves of whatever the fine-tuning logged: losses in one panel, other figures in panels of their own."""
    manifest = read_manifest(workspace.scft())
    if manifest is None:
        return None
    curves = series_of(read_jsonl(workspace.scft() / LOG)[0], "step")
    curves = {name: (xs, ys) for name, (xs, ys) in curves.items() if len(xs) > 1 and name not in ("epoch", "seconds")}
    curves = {name.replace("_", " "): curve for name, curve in curves.items()}
    losses = {name: curve for name, curve in curves.items() if name.endswith("loss")}
    panels = [figures.lines(losses, "step", "contrastive loss")] if losses else []
    panels += [figures.lines({name: curve}, "step", name) for name, curve in curves.items() if name not in losses]
    figure = (
        Figure("scft-curves", "Fine-tuning of the LLM", panels, _long(curves, "figure", "step")) if panels else None
    )
    return {"summary": manifest["summary"], "figure": figure}


def similarity_part(workspace: Workspace, data: SplitData, settings: Settings) -> dict[str, Any] | None:
    """How alike random pairs of items are, before and after fine-tuning, with and without the common direction.

    Embeddings of other items than the data's are left out: pairs would be other pairs.
    """
    spaces = {}
    for name in ("base", "scft"):
        if read_manifest(workspace.embeddings(name)) is not None:
            with suppress(BadDataError):
                spaces[name] = space_of_items(workspace, name, data.item_ids).vectors
    there = list(spaces)
    if not there:
        return None
    words = {"base": "before", "scft": "after"}
    rows, values = [], {}
    for name, vectors in spaces.items():
        for centred in (False, True):
            unit = unit_vectors(vectors, centred=centred)
            cosine = pair_cosines(unit, settings.seed)
            values[name, centred] = cosine
            rows.append(
                {
                    "space": words[name],
                    "centred": centred,
                    "mean": float(cosine.mean()),
                    "deviation": float(cosine.std()),
                    "uniformity": uniformity(cosine),
                }
            )
    panels = []
    columns: dict[str, list[Any]] = {key: [] for key in ("mean_taken_away", "from", "to", *(words[n] for n in there))}
    for centred, axis in ((False, "cosine"), (True, "cosine, mean taken away")):
        shown = {words[name]: values[name, centred] for name in there}
        edges = np.linspace(min(v.min() for v in shown.values()), max(v.max() for v in shown.values()), BINS + 1)
        panels.append(figures.histogram(shown, axis, edges))
        columns["mean_taken_away"] += [centred] * BINS
        columns["from"] += edges[:-1].tolist()
        columns["to"] += edges[1:].tolist()
        for name, cosine in shown.items():
            columns[name] += (np.histogram(cosine, edges)[0] / len(cosine)).tolist()
    title = "Similarity of items before and after fine-tuning" if len(there) > 1 else "Similarity of items"
    return {"rows": rows, "figure": Figure("similarity", title, panels, columns)}


def pair_cosines(unit: np.ndarray, seed: int) -> np.ndarray:
    """Cosines of random pairs of different items."""
    rng = numpy_rng(seed, "report-pairs")
    first = rng.integers(0, len(unit), PAIRS)
    second = (first + rng.integers(1, max(2, len(unit)), PAIRS)) % len(unit)
    return np.einsum("ij,ij->i", unit[first], unit[second]).astype(np.float64)


def uniformity(cosines: np.ndarray) -> float:
    """log mean exp(-2 |x - y|^2) over pairs of unit vectors (Wang and Isola, 2020): lower is more evenly spread."""
    return float(np.log(np.mean(np.exp(-2 * (2 - 2 * cosines)))))


def recommender_part(workspace: Workspace, mains: list[Variant]) -> Figure | None:
    """Validation curves of the main variants' first seeds, a panel a backbone; the numbers of every run."""
    curves = {
        name: series_of(read_jsonl(workspace.run(name) / LOG)[0], "epoch").get("NDCG@10")
        for name in known_runs(workspace)
    }
    shown = {name: curve for name, curve in curves.items() if curve is not None}
    if not shown:
        return None
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for one in mains:
        if one.runs[0] in shown:
            panels.setdefault(BACKBONES[one.backbone], {})[one.method] = shown[one.runs[0]]
    # Runs that have not been evaluated belong to no variant yet.
    panels = panels or {"": dict(list(shown.items())[:MOST_RUNS])}
    made = [
        figures.lines(found, "epoch", "validation NDCG@10", places=METHOD_PLACES, title=name)
        for name, found in panels.items()
    ]
    drawn = sum(map(len, panels.values()))
    left = len(shown) - drawn
    note = f"{drawn} of {len(shown)} runs, the first seed of each method; the download has all." if left else ""
    return Figure("validation-curves", "Training of the recommenders", made, _long(shown, "run", "epoch"), note)
