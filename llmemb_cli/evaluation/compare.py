"""Runs side by side: means over seeds, gains over a baseline, and whether the gains are chance."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.runs import SWITCHES, collaborative_settings, made_with, rat_settings, used_settings
from llmemb_cli.config.settings import Settings, rat_for
from llmemb_cli.errors import WrongUseError
from llmemb_cli.evaluation.document import seedless
from llmemb_cli.evaluation.evaluated import Evaluated, NameKind, home_names, read_evaluated
from llmemb_cli.evaluation.significance import DECIMALS, Correction, Test, corrected, paired_test
from llmemb_cli.workspace.locate import Workspace

# Of an entry, and not in the document: every user's figures, the baseline's entry, how the runs are called.
INNER = ("values", "base", "name_kind")


def compare_runs(
    workspace: Workspace,
    settings: Settings,
    runs: list[str],
    *,
    baseline: str | None = None,
    metrics: tuple[str, ...] = ("HR@10", "NDCG@10"),
    test: Test = "t",
    correction: Correction = "holm",
    alpha: float = 0.05,
) -> dict[str, Any]:
    """The document of `llmemb compare --json`.

    Runs that differ only in their seed are one variant. A variant is compared with the baseline on every user's
    value, averaged over its seeds; and, where both have at least two seeds in common, on the seeds' means.

    Args:
        runs: runs, variants or methods of this workspace, or run directories of another; empty: all evaluated ones.
        baseline: a variant, run or method; default: method none. A method is meant in each backbone by itself; a
            backbone without it has its first variant as baseline.
        correction: over all tests of the table.

    Raises:
        WrongUseError: a run, metric or baseline is not there.
        BadDataError: the runs were measured on different data, users or candidates.
    """
    return compare_evaluated(
        read_evaluated(workspace, settings, runs),
        workspace,
        settings,
        baseline=baseline,
        metrics=metrics,
        test=test,
        correction=correction,
        alpha=alpha,
        sort=not runs,
    )


def compare_evaluated(
    found: list[Evaluated],
    workspace: Workspace,
    settings: Settings,
    *,
    baseline: str | None = None,
    metrics: tuple[str, ...] = ("HR@10", "NDCG@10"),
    test: Test = "t",
    correction: Correction = "holm",
    alpha: float = 0.05,
    sort: bool = False,
) -> dict[str, Any]:
    """`compare_runs` of evaluations that have been read: for several tables of the same runs.

    Args:
        found: of `read_evaluated`, all or some.
        sort: in their natural order, instead of that of `found`.
    """
    measured = [one.evaluation["summary"]["overall"] for one in found]
    known = [name for name in measured[0] if name != "n" and all(name in one for one in measured)]
    for name in metrics:
        if name not in known:
            raise WrongUseError(f"no metric {name}", hint=", ".join(known) + "; others: `llmemb eval -k`")
    families = _variants(found)
    entries = [_entry(members, metrics, settings) for members in families]
    _set_labels(entries, families, settings)
    if sort:
        entries.sort(key=natural_order)
    _set_baselines(entries, baseline)
    made = [
        _compare(entry, part, metric, test, settings.seed)
        for entry in entries
        if entry["base"] is not None
        for part in entry["parts"]
        if not _is_everybody(entry, part)
        for metric in metrics
    ]
    for cell, p in zip(made, corrected([cell["p"] for cell in made], correction), strict=True):
        cell["p_corrected"] = p
        cell["significant"] = p < alpha
    for entry in entries:
        for part, cells in entry["parts"].items():
            # A test of the same users again is not one more test to correct for.
            cells |= dict(entry["parts"]["overall"]) if _is_everybody(entry, part) else {}
    for part in entries[0]["parts"]:
        for metric in metrics:
            _set_places(entries, part, metric)
    first = found[0].evaluation["summary"]
    return {
        "workspace": str(workspace.root),
        "protocol": first["protocol"],
        "definitions": {name: first["definitions"][name] for name in settings.eval.groups if name != "none"},
        "metrics": list(metrics),
        "test": test,
        "correction": correction,
        "alpha": alpha,
        "tests": len(made),
        "variants": [{key: value for key, value in entry.items() if key not in INNER} for entry in entries],
    }


def _is_everybody(entry: dict[str, Any], part: str) -> bool:
    """Whether a group has all users, so that its figures are the overall ones."""
    return part != "overall" and bool(entry["parts"][part]["n"] == entry["parts"]["overall"]["n"])


def _variants(found: list[Evaluated]) -> list[list[Evaluated]]:
    """Runs that differ only in their seed, together; backbones too, in the order in which they come up."""
    groups: dict[tuple[str, int], list[Evaluated]] = {}
    # Names that llmemb gave come first: a second run with the same settings and seed, under a name of its own, is no
    # further seed, and must not take the place of the first.
    for one in sorted(found, key=lambda one: one.name_kind):
        again = 0
        while any(one.summary["seed"] == other.summary["seed"] for other in groups.get((one.variant, again), [])):
            again += 1
        groups.setdefault((one.variant, again), []).append(one)
    backbones = list(dict.fromkeys(one.summary["backbone"] for one in found))
    places = {id(one): place for place, one in enumerate(found)}

    def order(members: list[Evaluated]) -> tuple[int, int]:
        first = min(places[id(one)] for one in members)
        return backbones.index(members[0].summary["backbone"]), first

    return sorted(groups.values(), key=order)


def _entry(members: list[Evaluated], metrics: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    """One variant: means over its seeds, and every user's mean."""
    members = sorted(members, key=lambda one: int(one.summary["seed"]))
    first = members[0]
    values = {metric: np.mean([one.table[metric].to_numpy() for one in members], axis=0) for metric in metrics}
    parts: dict[str, Any] = {}
    for name, chosen in _parts(first.table, first.evaluation["summary"], settings).items():
        by_seed = {m: [float(np.mean(one.table[m].filter(chosen).to_numpy())) for one in members] for m in metrics}
        parts[name] = {"n": int(chosen.sum())} | {
            metric: {
                "mean": float(np.mean(seeds)),
                "deviation": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None,
                "by_seed": seeds,
            }
            for metric, seeds in by_seed.items()
        }
    return {
        "variant": first.label,
        "method": first.summary["method"],
        "backbone": first.summary["backbone"],
        "runs": [one.run for one in members],
        "seeds": [one.summary["seed"] for one in members],
        "baseline": None,
        "base": None,
        "parts": parts,
        "name_kind": first.name_kind,
        "values": values | {"chosen": _parts(first.table, first.evaluation["summary"], settings)},
    }


def _parts(table: pl.DataFrame, summary: dict[str, Any], settings: Settings) -> dict[str, pl.Series]:
    """Masks of the users of each part of the table that is not empty: overall, then the groups asked for."""
    parts = {"overall": pl.Series(np.ones(len(table), dtype=bool))}
    for grouping in settings.eval.groups:
        if grouping != "none":
            for group in summary["groups"][grouping]:
                if group["n"]:
                    parts[group["name"]] = table[grouping] == group["name"]
    return parts


def natural_order(entry: dict[str, Any]) -> tuple[int, bool, list[str | float]]:
    """By backbone, in each the plain model first, then by name, numbers in it by their size."""
    pieces = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", entry["variant"])
    numbered = [float(one) if at % 2 else one for at, one in enumerate(pieces)]
    return list(BACKBONES).index(entry["backbone"]), entry["method"] != "none", numbered


def _set_labels(entries: list[dict[str, Any]], variants: list[list[Evaluated]], settings: Settings) -> None:
    """Tell variants of several workspaces, or with names that say too little, apart; no two are called the same.

    Where flags changed settings, a run's name ends in a digest of them; the label says which they are.
    """
    homes = home_names(members[0].home for members in variants)
    changes = [_changed(members[0], variants, settings) for members in variants]
    labels = [_label(members[0], changed) for members, changed in zip(variants, changes, strict=True)]
    before = [f"{homes[members[0].home]}/" if len(homes) > 1 else "" for members in variants]
    names = _distinct(
        [home + label for home, label in zip(before, labels, strict=True)],
        [home + members[0].run for home, members in zip(before, variants, strict=True)],
    )
    for entry, name, changed in zip(entries, names, changes, strict=True):
        entry["changed"] = changed
        entry["variant"] = name


def _distinct(labels: list[str], runs: list[str]) -> list[str]:
    """The labels; in the place of those that are alike the names of runs, which never are."""
    chosen = list(labels)
    while True:
        alike = [at for at, label in enumerate(chosen) if chosen.count(label) > 1 and label != runs[at]]
        if not alike:
            return chosen
        for at in alike:
            chosen[at] = runs[at]


def _label(one: Evaluated, changed: dict[str, Any]) -> str:
    """The name of a run without seed; settings in the place of the digest of settings changed by flags."""
    if one.name_kind is not NameKind.DIGEST:
        return one.label
    return f"{one.plain} {shown_changes(changed)}".strip()


def shown_changes(changed: dict[str, Any], between: str = " ") -> str:
    """The settings in which a variant differs from the plain one (`changed` of its entry)."""
    return between.join(f"{key}={value}" for key, value in changed.items())


def _changed(one: Evaluated, variants: list[list[Evaluated]], in_file: Settings) -> dict[str, Any]:
    """Where a run whose name is not the plain one differs from the run that has it; nothing for that one.

    Args:
        in_file: llmemb.toml, which counts where there is no such run.
    """
    if one.name_kind is NameKind.PLAIN:
        return {}
    settings = used_settings(one.trained)
    kind = {key: settings[key] for key in ("backbone", "method")}
    planned = rat_for(in_file, **kind)
    theirs = filed = planned.model_dump(mode="json")
    needed = collaborative_settings(in_file.model_copy(update={"rat": planned}))
    read = None if needed is None else rat_settings(needed)
    for members in variants:
        other = members[0]
        if other.label == one.plain and other.home == one.home:
            theirs, read = used_settings(other.trained), other.collaborative

    def value(made: dict[str, Any], key: str) -> Any:
        return made_with(made, key, filed.get(key))

    named = {"backbone", "method", "without"}
    keys = sorted({*settings, *SWITCHES} - named)
    changed = {key: value(settings, key) for key in keys if value(settings, key) != value(theirs, key)}
    # What a flag changed in both is said once.
    before, now = read or {}, one.collaborative or {}
    for key in sorted(now.keys() & before.keys()):
        if now[key] != before[key] and changed.get(key) != now[key]:
            changed[f"collaborative.{key}"] = now[key]
    return changed


def _run_names(entry: dict[str, Any]) -> set[str]:
    """What the runs of a variant are called, with and without their seed."""
    return {*entry["runs"], *map(seedless, entry["runs"], entry["seeds"])}


def _set_baselines(entries: list[dict[str, Any]], wanted: str | None) -> None:
    method = next((entry["method"] for entry in entries if entry["method"] == wanted), None)
    named = [entry for entry in entries if wanted == entry["variant"]]
    chosen = next(iter(named or [entry for entry in entries if wanted in _run_names(entry)]), None)
    if wanted is not None and chosen is None and method is None:
        hint = ", ".join(entry["variant"] for entry in entries)
        raise WrongUseError(f"no baseline {wanted}", hint=f"{hint}; or a method, for each backbone")
    for entry in entries:
        alike = [other for other in entries if other["backbone"] == entry["backbone"]]
        # Of several variants of that method the plainest: the one with the fewest settings changed, and of equal ones
        # that with the plain name.
        wanted_ones = [other for other in alike if other["method"] == (method or "none")]
        plain = min(wanted_ones or alike[:1], key=lambda other: (len(other["changed"]), other["name_kind"]))
        base = chosen or plain
        if base is not entry:
            entry |= {"base": base, "baseline": base["variant"]}


def _compare(entry: dict[str, Any], part: str, metric: str, test: Test, seed: int) -> dict[str, Any]:
    """Add the comparison with the baseline to one cell of `entry`, and return the cell."""
    base = entry["base"]
    chosen = entry["values"]["chosen"][part].to_numpy()
    result = paired_test(entry["values"][metric][chosen], base["values"][metric][chosen], test, seed=seed)
    cell: dict[str, Any] = entry["parts"][part][metric]
    theirs = base["parts"][part][metric]
    shared = [s for s in entry["seeds"] if s in base["seeds"]]
    cell |= {
        "difference": result.difference,
        "gain": cell["mean"] / theirs["mean"] - 1 if theirs["mean"] else None,
        "interval": list(result.interval),
        "p": result.p,
        "effect": result.effect,
        "wins": result.wins,
        "losses": result.losses,
        "p_seeds": None,
    }
    if len(shared) > 1:
        ours = np.array([cell["by_seed"][entry["seeds"].index(s)] for s in shared])
        others = np.array([theirs["by_seed"][base["seeds"].index(s)] for s in shared])
        cell["p_seeds"] = paired_test(ours, others, "t").p
    return cell


def _set_places(entries: list[dict[str, Any]], part: str, metric: str) -> None:
    """Mark the best and second-best figure of a column among the variants of each backbone."""
    for backbone in {entry["backbone"] for entry in entries}:
        cells = [entry["parts"][part][metric] for entry in entries if entry["backbone"] == backbone]
        # Means of the same figures over seeds in another order differ in their last bits.
        means = [round(cell["mean"], DECIMALS) for cell in cells]
        figures = sorted(set(means), reverse=True)
        for cell, mean in zip(cells, means, strict=True):
            place = figures.index(mean) + 1
            # Of two, the second is the last, which deserves no mark; of equal ones none is the best; 0 is no place.
            marked = place < min(3, len(cells)) and len(figures) > 1 and cell["mean"] > 0
            cell["place"] = place if marked else None
