"""A table or figure of the paper: which runs it needs, and what they say beside the paper's own figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import without_effect
from llmemb_cli.config.settings import Settings, load_settings, rat_for
from llmemb_cli.errors import WrongUseError
from llmemb_cli.evaluation.compare import compare_runs
from llmemb_cli.evaluation.evaluated import home_names
from llmemb_cli.evaluation.significance import corrected
from llmemb_cli.evaluation.spaces import space_of_items, unit_vectors
from llmemb_cli.pipeline import protocol_name
from llmemb_cli.reporting.grid import Cell
from llmemb_cli.reporting.parts.items import bins_of, same_group_share
from llmemb_cli.reporting.parts.training import pair_cosines, uniformity
from llmemb_cli.reporting.tables import protocol_label
from llmemb_cli.reporting.verdicts import judge
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest, require_stage

Target = Literal["table1", "table2", "fig4", "fig5", "fig6"]
METRICS = ("HR@10", "NDCG@10")
SWEEPS: dict[str, list[float]] = {"alpha": [0.001, 0.005, 0.01, 0.05, 0.1], "gamma": [0.5, 1.0, 2.0, 4.0, 8.0]}
OTHER_PROTOCOL = (
    "ranked by another protocol than the paper's, so its figures do not stand beside ours: only orders do"
)
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
        backbones: default: the paper's, all three for table1, SASRec for the others.
        methods: default: the paper's six (table1, fig5, fig6); table2 and fig4 are about llmemb.
        overrides: settings changed for the whole grid ({"rat.epochs": 5}).

    Raises:
        WrongUseError: other methods for a target that is about llmemb, or nothing that can be trained.
    """
    if VARIANTS[target] is not _methods and set(methods or ["llmemb"]) != {"llmemb"}:
        raise WrongUseError(
            f"{target} is about llmemb alone: no --method {', '.join(methods or [])}",
            hint="leave it out; table1, fig5 and fig6 compare methods",
        )
    chosen, compared = _compared(target, backbones, methods)
    unfit = unfit_pairs(target, backbones, methods)
    cells: dict[tuple[Path, str], Cell] = {}  # two sweeps share the run with both settings as in llmemb.toml
    for workspace in workspaces:
        filed = load_settings(workspace.settings_file)
        base = load_settings(workspace.settings_file, overrides)
        for changes in VARIANTS[target](chosen, compared):
            if (changes["backbone"], changes["method"]) in unfit:
                continue
            for seed in seeds:
                settings = base.model_copy(update={"rat": rat_for(base, **changes), "seed": seed})
                cell = Cell(workspace, settings, filed)
                cells.setdefault((workspace.root, cell.run), cell)
    if not cells and unfit:
        ((backbone, method), reason), *_ = unfit.items()
        raise WrongUseError(f"--method {method} with --backbone {backbone}: {reason}", hint="take another one")
    return list(cells.values())


def _compared(target: Target, backbones: list[str] | None, methods: list[str] | None) -> tuple[list[str], list[str]]:
    paper = paper_figures(target)
    return backbones or paper["backbones"], methods or paper["methods"]


def unfit_pairs(
    target: Target, backbones: list[str] | None = None, methods: list[str] | None = None
) -> dict[tuple[str, str], str]:
    """Backbones and methods of the target that cannot be trained together, and why; `grid_of` leaves them out."""
    chosen, compared = _compared(target, backbones, methods)
    return {
        (name, method): reason
        for name, backbone in BACKBONES.items()
        for method, reason in backbone.unfit.items()
        if name in chosen and method in compared
    }


def idle_settings(cells: list[Cell]) -> list[str]:
    """Settings of `[rat]` that were given for the grid and that none of its runs reads."""
    idle = set.intersection(*(set(without_effect(cell.settings)) for cell in cells))
    return [f"rat.{key}" for key in sorted(idle)]


def _methods(backbones: list[str], methods: list[str]) -> list[dict[str, Any]]:
    return [{"backbone": backbone, "method": method, "without": []} for backbone in backbones for method in methods]


def _ablations(backbones: list[str], methods: list[str]) -> list[dict[str, Any]]:
    parts = [str(part) for part in get_args(get_args(RatSettings.model_fields["without"].annotation)[0])]
    without: list[list[str]] = [[], *([part] for part in parts)]
    return [{"backbone": b, "method": "llmemb", "without": left_out} for b in backbones for left_out in without]


def _sweeps(backbones: list[str], methods: list[str]) -> list[dict[str, Any]]:
    """Each setting varied, the others as in llmemb.toml."""
    values = [(key, value) for key, found in SWEEPS.items() for value in found]
    return [
        {"backbone": b, "method": "llmemb", "without": [], key: value} for b in backbones for key, value in values
    ]


VARIANTS: dict[Target, Callable[[list[str], list[str]], list[dict[str, Any]]]] = {
    "table1": _methods,
    "table2": _ablations,
    "fig4": _sweeps,
    "fig5": _methods,
    "fig6": _methods,
}


def reproduce_document(target: Target, cells: list[Cell], seed: int = 0) -> dict[str, Any]:
    """The document of `llmemb reproduce --json`: every figure beside the paper's, and what became of its claims."""
    paper = paper_figures(target)
    names = home_names(cell.workspace.root for cell in cells)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    protocols: dict[str, str] = {}
    for root, name in names.items():
        own = [cell for cell in cells if cell.workspace.root == root and cell.status in ("done", "up-to-date")]
        workspace = Workspace(root)
        dataset, note = _dataset(workspace, name, paper)
        notes += note
        if not own:
            continue
        found = _measured(target, workspace, own, own[0].settings, seed)
        protocols[name], alike = _protocol(target, own[0], paper)
        notes += [OTHER_PROTOCOL] if not alike and OTHER_PROTOCOL not in notes else []
        for row in found:
            row |= {"workspace": name, "dataset": dataset}
            _set_paper(row, paper["figures"] if alike else [])
        rows += found
    tests = _correct(rows)
    verdicts: list[dict[str, Any]] = []
    for name in protocols:
        own_rows = [row for row in rows if row["workspace"] == name]
        verdicts += judge(paper["claims"], own_rows, name, list(SWEEPS))
    return {
        "target": target,
        "title": paper["title"],
        "about": paper["about"],
        "paper_protocol": paper["protocol"],
        "protocol": _in_words(protocols),
        "protocols": protocols,
        "sources": _sources(paper, rows),
        "notes": notes,
        "figures": rows,
        "tests": tests,
        "claims": verdicts,
        "runs": [cell.describe() for cell in cells],
        "failed": [cell.describe() for cell in cells if cell.status == "failed"],
    }


def _protocol(target: Target, cell: Cell, paper: dict[str, Any]) -> tuple[str, bool]:
    """How the runs of a cell's workspace were ranked, in words, and whether the paper's were alike."""
    if target == "fig6":
        return "none: embeddings are looked at", True
    evaluation = cell.workspace.evaluation(cell.run, protocol_name(cell.settings))
    protocol = (read_manifest(evaluation) or {})["summary"]["protocol"]
    return protocol_label(protocol), all(protocol.get(key) == value for key, value in paper["ranking"].items())


def _in_words(protocols: dict[str, str]) -> str:
    """How our figures were ranked, by workspace where they differ in it."""
    if len(set(protocols.values())) > 1:
        return "; ".join(f"{text} in {name}" for name, text in protocols.items())
    return next(iter(protocols.values()), "no figures, as no run was finished")


def _correct(rows: list[dict[str, Any]]) -> int:
    """Correct p for all tests of the document (Holm), as `p_corrected`; returns how many they are.

    A row that is `as` another, since its part has all users, is no further test.
    """
    tested = [row for row in rows if row["p"] is not None and row["as"] is None]
    for row, p in zip(tested, corrected([row["p"] for row in tested], "holm"), strict=True):
        row["p_corrected"] = p
    for row in rows:
        same = row.pop("as")
        if same is not None:
            row["p_corrected"] = same["p_corrected"]
    return len(tested)


def _sources(paper: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, str]:
    """The sources of the figures that stand beside ours."""
    datasets = {row["dataset"] for row in rows if row["paper"] is not None}
    used = {one["source"] for one in paper["figures"] if one["dataset"] in datasets}
    return {name: text for name, text in paper["sources"].items() if name in used}


def _dataset(workspace: Workspace, title: str, paper: dict[str, Any]) -> tuple[str, list[str]]:
    """The paper's name of the workspace's data, or its own, and how far the two differ."""
    manifest = read_manifest(workspace.data)
    if manifest is None:
        return title, [f"{title}: no data"]
    summary = require_stage(workspace.data, made_by="llmemb init")["summary"]
    name = str(summary["dataset"]).removeprefix("amazon-")
    theirs = paper["data"].get(name)
    ours = f"{title}: {summary['dataset']}, {summary['users']:,} users, {summary['items']:,} items"
    if theirs is None:
        known_sets = ", ".join(paper["data"])
        return name, [
            f"{ours}; not a data set of this part of the paper ({known_sets}), so only the order is compared"
        ]
    return name, [f"{ours}; the paper's has {theirs['users']:,} users, {theirs['items']:,} items"]


def _measured(
    target: Target, workspace: Workspace, cells: list[Cell], settings: Settings, seed: int
) -> list[dict[str, Any]]:
    """One row for each variant, part and metric: mean over seeds, deviation, and the test against llmemb.

    p is not corrected yet; a row is `as` that of everybody, where its part has all users.
    """
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
        document = compare_runs(workspace, chosen, runs, baseline=whole.run, correction="none")
        by_run = {cell.run: cell.settings.rat for cell in members}
        for entry in document["variants"]:
            rat = by_run[entry["runs"][0]]
            base = {"backbone": backbone, "method": rat.method, "without": list(rat.without), "seeds": entry["seeds"]}
            base |= {key: getattr(rat, key) for key in SWEEPS} if target == "fig4" else {}
            base["baseline"] = entry["baseline"] is None
            everybody: dict[str, dict[str, Any]] = {}
            for name, cells_ in entry["parts"].items():
                for metric in METRICS:
                    row = base | {"part": name, "users": cells_["n"], "metric": metric, "p_corrected": None}
                    row |= {key: cells_[metric].get(key) for key in ("mean", "deviation", "p", "gain")}
                    overall = everybody.setdefault(metric, row)
                    row["as"] = overall if row is not overall and row["users"] == overall["users"] else None
                    rows.append(row)
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
            unit = unit_vectors(space_of_items(workspace, cell.run, data.item_ids).vectors, centred=False)
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
                    "p": None,
                    "p_corrected": None,
                    "gain": None,
                    "as": None,
                }
            )
    return rows


def _set_paper(row: dict[str, Any], figures: list[dict[str, Any]]) -> None:
    """The paper's figure of a cell and ours over it, where there is a source."""
    same = ("dataset", "backbone", "method", "part")
    found = [one for one in figures if all(one[key] == row[key] for key in same) and not row["without"]]
    theirs = next((one[row["metric"]] for one in found if row["metric"] in one), None)
    row["paper"] = theirs
    row["ratio"] = row["mean"] / theirs if theirs else None
