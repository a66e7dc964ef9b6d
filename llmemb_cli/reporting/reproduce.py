"""A table or figure of the paper: which runs it needs, and what they say beside the paper's own figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.settings import Settings, load_settings
from llmemb_cli.evaluation.compare import compare_runs
from llmemb_cli.evaluation.spaces import open_space, unit_vectors
from llmemb_cli.pipeline import protocol_name
from llmemb_cli.reporting.grid import Cell
from llmemb_cli.reporting.parts.items import bins_of, same_group_share
from llmemb_cli.reporting.parts.training import pair_cosines, uniformity
from llmemb_cli.reporting.tables import protocol_label
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest, require_stage

Target = Literal["table1", "table2", "fig4", "fig5", "fig6"]
METRICS = ("HR@10", "NDCG@10")
SWEEPS: dict[str, list[float]] = {"alpha": [0.001, 0.005, 0.01, 0.05, 0.1], "gamma": [0.5, 1.0, 2.0, 4.0, 8.0]}
MOST_ITEMS = 5000  # of the neighbour share: all pairs are looked at


def known(field: str) -> list[str]:
    """The values that a setting of `[rat]` can take."""
    annotation = RatSettings.model_fields[field].annotation
    return [str(value) for value in get_args(annotation)]


def paper_figures(target: Target) -> dict[str, Any]:
    """What the paper says, with its sources; cells without a source are absent."""
    text = resources.files("llmemb_cli.reporting").joinpath("paper", f"{target}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def grid_of(
    target: Target,
    workspaces: list[Workspace],
    seeds: list[int],
    *,
    backbones: list[str] | None = None,
    methods: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[Cell]:
    """The runs that the target needs, in the settings of each workspace.

    Args:
        backbones: default: all for table1, SASRec for the others, as in the paper.
        methods: default: all there are (table1, fig5, fig6); table2 and fig4 are about llmemb.
        overrides: settings changed for the whole grid ({"rat.epochs": 5}).
    """
    chosen = backbones or (known("backbone") if target == "table1" else ["sasrec"])
    cells: dict[tuple[Path, str], Cell] = {}  # two sweeps share the run with both settings as in llmemb.toml
    for workspace in workspaces:
        filed = load_settings(workspace.settings_file)
        base = load_settings(workspace.settings_file, overrides)
        for changes in VARIANTS[target](chosen, methods):
            for seed in seeds:
                rat = RatSettings.model_validate(base.rat.model_dump() | changes)
                settings = base.model_copy(update={"rat": rat, "seed": seed})
                cell = Cell(workspace, settings, filed)
                cells.setdefault((workspace.root, cell.run), cell)
    return list(cells.values())


def _methods(backbones: list[str], methods: list[str] | None) -> list[dict[str, Any]]:
    names = methods or known("method")
    return [{"backbone": backbone, "method": method, "without": []} for backbone in backbones for method in names]


def _ablations(backbones: list[str], methods: list[str] | None) -> list[dict[str, Any]]:
    parts = [str(part) for part in get_args(get_args(RatSettings.model_fields["without"].annotation)[0])]
    without: list[list[str]] = [[], *([part] for part in parts)]
    return [{"backbone": b, "method": "llmemb", "without": left_out} for b in backbones for left_out in without]


def _sweeps(backbones: list[str], methods: list[str] | None) -> list[dict[str, Any]]:
    """Each setting varied, the others as in llmemb.toml."""
    values = [(key, value) for key, found in SWEEPS.items() for value in found]
    return [
        {"backbone": b, "method": "llmemb", "without": [], key: value} for b in backbones for key, value in values
    ]


VARIANTS: dict[Target, Callable[[list[str], list[str] | None], list[dict[str, Any]]]] = {
    "table1": _methods,
    "table2": _ablations,
    "fig4": _sweeps,
    "fig5": _methods,
    "fig6": _methods,
}


def reproduce_document(target: Target, cells: list[Cell], seed: int = 0) -> dict[str, Any]:
    """The document of `llmemb reproduce --json`: every figure beside the paper's, and what became of its claims."""
    paper = paper_figures(target)
    rows: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    notes: list[str] = []
    label = "none: embeddings are looked at"
    for root in dict.fromkeys(cell.workspace.root for cell in cells):
        own = [cell for cell in cells if cell.workspace.root == root and cell.status in ("done", "up-to-date")]
        workspace = Workspace(root)
        dataset, note = _dataset(workspace, paper)
        notes += note
        if not own:
            continue
        settings = own[0].settings
        found = _measured(target, workspace, own, settings, seed)
        if target != "fig6":
            summary = (read_manifest(workspace.evaluation(own[0].run, protocol_name(settings))) or {})["summary"]
            label = protocol_label(summary["protocol"])
        for row in found:
            row |= {"workspace": root.name, "dataset": dataset}
            _set_paper(row, paper)
        rows += found
        verdicts += _verdicts(paper, found, root.name)
    return {
        "target": target,
        "title": paper["title"],
        "about": paper["about"],
        "paper_protocol": paper["protocol"],
        "protocol": label,
        "sources": _sources(paper, rows),
        "notes": notes,
        "figures": rows,
        "claims": verdicts,
        "runs": [cell.describe() for cell in cells],
        "failed": [cell.describe() for cell in cells if cell.status == "failed"],
    }


def _sources(paper: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    """The sources of the figures that stand beside ours."""
    datasets = {row["dataset"] for row in rows if row["paper"] is not None}
    used = {one["source"] for one in paper["figures"] if one["dataset"] in datasets}
    return {name: text for name, text in paper["sources"].items() if name in used}


def _dataset(workspace: Workspace, paper: dict[str, Any]) -> tuple[str, list[str]]:
    """The paper's name of the workspace's data, or its own, and how far the two differ."""
    manifest = read_manifest(workspace.data)
    if manifest is None:
        return workspace.root.name, [f"{workspace.root.name}: no data"]
    summary = require_stage(workspace.data, made_by="llmemb init")["summary"]
    name = str(summary["dataset"]).removeprefix("amazon-")
    theirs = paper["data"].get(name)
    ours = f"{workspace.root.name}: {summary['dataset']}, {summary['users']:,} users, {summary['items']:,} items"
    if theirs is None:
        known_sets = ", ".join(paper["data"])
        return name, [
            f"{ours}; not a data set of this part of the paper ({known_sets}), so only the order is compared"
        ]
    return name, [f"{ours}; the paper's has {theirs['users']:,} users, {theirs['items']:,} items"]


def _measured(
    target: Target, workspace: Workspace, cells: list[Cell], settings: Settings, seed: int
) -> list[dict[str, Any]]:
    """One row for each variant, part and metric: mean over seeds, deviation, and the test against llmemb."""
    if target == "fig6":
        return _embedding_rows(workspace, cells, seed)
    part = "popularity_bins" if target == "fig5" else "popularity"
    # The bins are a grouping of every evaluation, though not one that people choose by name.
    groups = settings.eval.model_copy(update={"groups": [part]})
    chosen = settings.model_copy(update={"eval": groups})
    rows = []
    for backbone in dict.fromkeys(cell.settings.rat.backbone for cell in cells):
        members = [cell for cell in cells if cell.settings.rat.backbone == backbone]
        whole = next((cell for cell in members if _is_whole(cell)), members[0])
        runs = list(dict.fromkeys(cell.run for cell in members))
        document = compare_runs(workspace, chosen, runs, baseline=whole.run)
        by_run = {cell.run: cell.settings.rat for cell in members}
        for entry in document["variants"]:
            rat = by_run[entry["runs"][0]]
            base = {"backbone": backbone, "method": rat.method, "without": list(rat.without), "seeds": entry["seeds"]}
            base |= {key: getattr(rat, key) for key in SWEEPS} if target == "fig4" else {}
            base["baseline"] = entry["baseline"] is None
            for name, cells_ in entry["parts"].items():
                for metric in METRICS:
                    cell = cells_[metric]
                    rows.append(
                        base
                        | {"part": name, "users": cells_["n"], "metric": metric}
                        | {key: cell.get(key) for key in ("mean", "deviation", "p_corrected", "gain")}
                    )
    return rows


def _is_whole(cell: Cell) -> bool:
    return cell.settings.rat.method == "llmemb" and not cell.settings.rat.without


def _embedding_rows(workspace: Workspace, cells: list[Cell], seed: int) -> list[dict[str, Any]]:
    from llmemb_cli.datasets.split import load_split

    data = load_split(workspace.data)
    rng = numpy_rng(seed, "reproduce-map")
    items = np.sort(rng.choice(data.n_items, size=min(MOST_ITEMS, data.n_items), replace=False))
    groups = bins_of(data.train_counts[1:])
    rows = []
    variants: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        variants.setdefault((cell.settings.rat.backbone, cell.settings.rat.method), []).append(cell)
    for (backbone, method), members in variants.items():
        values: dict[str, list[float]] = {"neighbours in own bin": [], "uniformity": []}
        for cell in members:
            unit = unit_vectors(open_space(workspace, cell.run).vectors, centred=False)
            values["neighbours in own bin"].append(same_group_share(unit[items], groups[items]))
            values["uniformity"].append(uniformity(pair_cosines(unit, seed)))
        for metric, found in values.items():
            rows.append(
                {
                    "backbone": backbone,
                    "method": method,
                    "without": [],
                    "seeds": [cell.settings.seed for cell in members],
                    "baseline": False,
                    "part": "items",
                    "users": None,
                    "metric": metric,
                    "mean": float(np.mean(found)),
                    "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else None,
                    "p_corrected": None,
                    "gain": None,
                }
            )
    return rows


def _set_paper(row: dict[str, Any], paper: dict[str, Any]) -> None:
    """The paper's figure of a cell and ours over it, where there is a source."""
    same = ("dataset", "backbone", "method", "part")
    found = [one for one in paper["figures"] if all(one[key] == row[key] for key in same) and not row["without"]]
    theirs = next((one[row["metric"]] for one in found if row["metric"] in one), None)
    row["paper"] = theirs
    row["ratio"] = row["mean"] / theirs if theirs else None


def _verdicts(paper: dict[str, Any], rows: list[dict[str, Any]], workspace: str) -> list[dict[str, Any]]:
    """Whether each claim holds here, cell by cell."""
    verdicts: list[dict[str, Any]] = []
    for claim in paper["claims"]:
        if "datasets" in claim and not {row["dataset"] for row in rows} & set(claim["datasets"]):
            continue
        for backbone in dict.fromkeys(row["backbone"] for row in rows):
            if backbone not in claim.get("backbones", [backbone]):
                continue
            for part in claim["parts"]:
                for metric in claim["metrics"]:
                    cells = [r for r in rows if (r["backbone"], r["part"], r["metric"]) == (backbone, part, metric)]
                    found = _best_value(claim, cells) if "setting" in claim else _pairs(claim, cells)
                    place = {"workspace": workspace, "backbone": backbone, "part": part, "metric": metric}
                    verdicts += [place | {"says": claim["says"]} | one for one in found]
    return verdicts


def _pairs(claim: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    better = next((row for row in cells if row["method"] == claim["better"] and not row["without"]), None)
    others = [row for row in cells if row is not better and claim["worse"] in ("*", row["method"])]
    found = []
    for other in others if better is not None else []:
        assert better is not None
        gap = other["mean"] - better["mean"] if claim.get("lower") else better["mean"] - other["mean"]
        p = other["p_corrected"] if better["baseline"] else None  # the test is against the baseline
        name = f"without {' and '.join(other['without'])}" if other["without"] else other["method"]
        found.append(
            {
                "compared": f"{claim['better']} and {name}",
                "ours": [better["mean"], other["mean"]],
                "paper": [better["paper"], other["paper"]],
                "p": p,
                "verdict": _verdict(gap, p),
            }
        )
    return found


def _verdict(gap: float, p: float | None) -> str:
    if gap == 0:
        return "no difference"
    sure = "" if p is None else ", significantly" if p < 0.05 else ", not significantly"
    return f"{'holds' if gap > 0 else 'does not hold'}{sure}"


def _best_value(claim: dict[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the best value of a setting is the paper's, among runs that have every other swept setting alike."""
    key = claim["setting"]
    others = [name for name in SWEEPS if name != key]
    lines: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for row in cells:
        lines.setdefault(tuple(row[name] for name in others), []).append(row)
    line = max(lines.values(), key=len, default=[])
    if len(line) < 2:
        return []
    best = max(line, key=lambda row: float(row["mean"]))
    return [
        {
            "compared": f"{key} {', '.join(f'{value:g}' for value in sorted(float(row[key]) for row in line))}",
            "ours": [best[key]],
            "paper": [claim["best"]],
            "p": None,
            "verdict": "holds" if best[key] == claim["best"] else "does not hold",
        }
    ]
