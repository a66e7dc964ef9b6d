"""The report: one self-contained HTML page from whatever stages a workspace has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import BadDataError
from llmemb_cli.evaluation.document import eval_document, known_runs
from llmemb_cli.evaluation.groups import BINS
from llmemb_cli.pipeline import report_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.prompts.views import random_drop
from llmemb_cli.reporting import figures
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, read_manifest, require_stage, run_stage
from llmemb_cli.workspace.store import read_tensors, write_json, write_text

TSNE_ITEMS = 2000
NEIGHBOURS = 10


def make_report(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Write `reports/report.html` (and the figures' data as JSON beside it).

    Raises:
        WrongUseError: there is not even data.
    """
    require_stage(workspace.data, made_by="llmemb init")

    def build(work: Path) -> dict[str, Any]:
        with report.task("report", 5, "parts") as task:
            content: dict[str, Any] = {"workspace": workspace.root.name, "data": _data_part(workspace)}
            task.advance(1)
            content["prompts"] = _prompt_part(workspace, settings)
            content["scft"] = _scft_part(workspace)
            task.advance(1)
            content["results"] = _result_part(workspace, settings)
            task.advance(1)
            content["runs"] = _run_part(workspace)
            content["map"] = _map_part(workspace, settings)
            task.advance(1)
            content["stages"] = _stage_part(workspace)
            write_text(work / "report.html", render_page(content))
            write_json(work / "figures.json", _numbers(content))
            task.advance(1)
        return {"bytes": (work / "report.html").stat().st_size}

    return run_stage(report_stage(workspace, settings), build, force=force, report=report)


def render_page(content: dict[str, Any]) -> str:
    """The page; every text from outside is escaped, figures are our own SVG."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmemb_cli.reporting"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.4f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template("report.html").render(content)


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    """The page's content without its pictures."""
    return {
        key: _numbers(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if key not in ("svg", "html")
    }


def _data_part(workspace: Workspace) -> dict[str, Any]:
    summary = require_stage(workspace.data, made_by="llmemb init")["summary"]
    popularity = summary["popularity"]
    svg = figures.bars(
        [entry["bin"] for entry in popularity], {"items": [entry["items"] for entry in popularity]}, "items"
    )
    return {"summary": summary, "svg": svg}


def _prompt_part(workspace: Workspace, settings: Settings) -> list[dict[str, Any]]:
    """Three items with their full prompt and two views."""
    if read_manifest(workspace.prompts) is None:
        return []
    frame, summary = read_prompts(workspace)
    rng = numpy_rng(settings.seed, "report-prompts")
    examples = []
    for row in rng.choice(len(frame), size=min(3, len(frame)), replace=False):
        parts = frame["parts"][int(row)].to_list()
        views = [random_drop(parts, settings.scft.drop_ratio, rng) for _ in range(2)]
        examples.append(
            {
                "item": frame["item_id"][int(row)],
                "instruction": summary["instruction"],
                "parts": parts,
                "views": [{"kept": view, "dropped": [part for part in parts if part not in view]} for view in views],
            }
        )
    return examples


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _scft_part(workspace: Workspace) -> dict[str, Any] | None:
    manifest = read_manifest(workspace.scft())
    if manifest is None:
        return None
    records = _log(workspace.scft() / "log.jsonl")
    loss = [(record["step"], record["loss"]) for record in records if "loss" in record]
    steps, values = zip(*loss, strict=True)
    return {
        "summary": manifest["summary"],
        "svg": figures.lines({"loss": (steps, values)}, "step", "contrastive loss"),
    }


def _result_part(workspace: Workspace, settings: Settings) -> dict[str, Any] | None:
    try:
        document = eval_document(workspace, settings)
    except BadDataError:
        return None
    series = {
        run["run"]: [group["HR@10"] for group in run["groups"]["popularity_bins"]]
        for run in document["runs"]
        if "popularity_bins" in run["groups"]
    }
    names = [group["name"] for group in document["runs"][0]["groups"].get("popularity_bins", [])]
    svg = figures.bars(names, series, "HR@10") if series else ""
    return {"runs": document["runs"], "svg": svg}


def _run_part(workspace: Workspace) -> dict[str, Any] | None:
    curves: dict[str, tuple[Any, Any]] = {}
    for name in known_runs(workspace):
        records = _log(workspace.run(name) / "log.jsonl")
        curves[name] = ([r["epoch"] for r in records], [r["NDCG@10"] for r in records])
    if not curves:
        return None
    return {"svg": figures.lines(curves, "epoch", "validation NDCG@10")}


def _map_part(workspace: Workspace, settings: Settings) -> dict[str, Any] | None:
    """t-SNE of each run's item embeddings, coloured by popularity (LLMEmb Figure 6), and a number for it."""
    from sklearn.manifold import TSNE

    names = known_runs(workspace)[:3]
    if not names:
        return None
    data = load_split(workspace.data)
    rng = numpy_rng(settings.seed, "report-map")
    items = np.sort(rng.choice(data.n_items, size=min(TSNE_ITEMS, data.n_items), replace=False))
    edges = [low for low, _, _ in BINS]
    groups = np.searchsorted(edges, data.train_counts[1:], side="right") - 1
    labels = [BINS[group][2] for group in groups[items]]
    points, shares = {}, {}
    for name in names:
        table = read_tensors(workspace.run(name) / "item_embeddings.safetensors")["item_embeddings"].numpy()
        unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        shares[name] = same_group_share(unit[items], groups[items])
        tsne = TSNE(perplexity=min(30, max(2, len(items) // 4)), init="pca", random_state=settings.seed, max_iter=500)
        points[name] = tsne.fit_transform(unit[items])
    chance = float((np.bincount(groups[items]) / len(items)) @ (np.bincount(groups[items]) / len(items)))
    return {
        "svg": figures.scatter(points, labels, [name for _, _, name in BINS]),
        "same_bin": shares,
        "chance": chance,
        "items": len(items),
    }


def same_group_share(unit: np.ndarray, groups: np.ndarray) -> float:
    """Share of the ten nearest neighbours (cosine) that are in an item's own popularity bin.

    Near chance means the space is not organised by popularity.
    """
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    count = min(NEIGHBOURS, len(unit) - 1)
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return float((groups[nearest] == groups[:, None]).mean())


def _stage_part(workspace: Workspace) -> list[dict[str, Any]]:
    found = []
    for path in sorted(workspace.root.rglob("manifest.json")):
        place = path.parent.relative_to(workspace.root)
        if place.parts[0] == "reports" or any(part.startswith(".") for part in place.parts):
            continue
        manifest = read_manifest(path.parent) or {}
        found.append(
            {
                "path": place.as_posix(),
                "made": manifest["made"],
                "seconds": manifest["seconds"],
                "peak_memory_mb": manifest["peak_memory_mb"],
                "device": manifest["device"],
            }
        )
    return sorted(found, key=lambda entry: entry["made"])
