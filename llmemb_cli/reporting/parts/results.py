"""The report's parts on results: Table 1 and 2 of the workspace, bars by popularity, curves of varied settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmemb_cli.config.settings import Settings
from llmemb_cli.evaluation.compare import compare_evaluated, natural_order, shown_changes
from llmemb_cli.evaluation.evaluated import Evaluated, comparable_runs, read_evaluated
from llmemb_cli.pipeline import protocol_name
from llmemb_cli.reporting import figures
from llmemb_cli.reporting.figures import Figure
from llmemb_cli.reporting.tables import SIGNIFICANT, caption, figure, protocol_label
from llmemb_cli.reporting.variants import (
    BACKBONES,
    METHOD_PLACES,
    Variant,
    ablations,
    main_variants,
    protocols,
    sweeps,
    variants_of,
)
from llmemb_cli.workspace.locate import Workspace

METRICS = ("HR@10", "NDCG@10")
BEYOND = {"coverage": ".1%", "gini": ".3f", "popularity": ".1f", "novelty": ".2f", "diversity": ".3f"}
OTHER_GROUPS = {"length": "By history length", "cold": "Cold items"}


def result_parts(workspace: Workspace, settings: Settings) -> list[dict[str, Any]]:
    """One part for each protocol that runs have been evaluated by; protocols are never mixed."""
    parts = []
    for chosen in protocols(workspace, settings):
        runs, left_out = comparable_runs(workspace, chosen)
        if runs:
            parts.append(_part(workspace, chosen, runs, left_out))
    return parts


@dataclass(frozen=True)
class Measured:
    """The comparable runs of a protocol: every user's results are read once for all tables.

    Attributes:
        settings: with that protocol.
        runs: evaluations by the name of the run.
    """

    workspace: Workspace
    settings: Settings
    runs: dict[str, Evaluated]

    def compare(self, variants: list[Variant], groups: list[str] | None = None, **how: Any) -> dict[str, Any]:
        """The comparison of some variants (evaluation/compare.py), over the groups asked for."""
        found = [self.runs[run] for one in variants for run in one.runs]
        chosen = self.settings
        if groups is not None:
            chosen = chosen.model_copy(update={"eval": chosen.eval.model_copy(update={"groups": groups})})
        return compare_evaluated(found, self.workspace, chosen, **how)

    def summaries(self, one: Variant) -> list[dict[str, Any]]:
        """The figures of a variant's runs."""
        return [self.runs[run].evaluation["summary"] for run in one.runs]


def _part(workspace: Workspace, settings: Settings, runs: list[str], left_out: list[str]) -> dict[str, Any]:
    found = read_evaluated(workspace, settings, runs)
    measured = Measured(workspace, settings, {one.run: one for one in found})
    variants = variants_of(found, workspace, settings)
    mains = main_variants(variants)
    first = found[0].evaluation
    summary = first["summary"]
    return {
        "protocol": protocol_label(summary["protocol"]),
        "kind": summary["protocol"]["kind"],
        "name": protocol_name(settings),
        "definition": summary["definitions"]["popularity"],
        "tail": [first["made_from"]["settings"][key] for key in ("tail_share", "tail_threshold")],
        "left_out": left_out,
        "mains": mains,
        "table1": _methods_table(measured, mains),
        "variants": _variants_table(measured, variants) if len(variants) > len(mains) else None,
        "table2": [_ablation_table(measured, family) for family in ablations(variants)],
        "beyond": _beyond(measured, mains),
        "bars": _bars(measured, mains),
        "others": _other_groups(measured, mains),
        "sweeps": [_sweep(settings, key, members) for key, members in sweeps(variants)],
        "runs": _all_runs(found),
    }


def _table(document: dict[str, Any], names: list[str], note: str, overall: bool = True) -> dict[str, Any]:
    """What the template draws: column groups, and rows of cells with their place, star and explanation."""
    parts = [part for part in document["variants"][0]["parts"] if overall or part != "overall"]
    sizes = {part: document["variants"][0]["parts"][part]["n"] for part in parts}
    rows = []
    for name, entry in zip(names, document["variants"], strict=True):
        cells = [_cell(entry["parts"][part][metric], entry) for part in parts for metric in document["metrics"]]
        rows.append({"name": name, "seeds": len(entry["seeds"]), "cells": cells, "group": entry["backbone"]})
    return {
        "parts": [{"name": part, "n": sizes[part]} for part in parts],
        "metrics": document["metrics"],
        "rows": rows,
        "caption": caption(document),
        "note": note,
    }


def _cell(cell: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    gain = cell.get("gain")
    about = ""
    if entry["baseline"] is not None and gain is not None:
        about = f"{gain:+.1%} against {entry['baseline']}, p = {cell['p_corrected']:.3g}"
    mean, _, spread = figure(cell).removesuffix(SIGNIFICANT).partition(" ± ")
    star = SIGNIFICANT if figure(cell).endswith(SIGNIFICANT) else ""
    return {"mean": mean, "star": star, "spread": spread, "place": cell["place"], "gain": gain, "about": about}


def _other_groups(measured: Measured, mains: list[Variant]) -> list[dict[str, Any]]:
    """A table of short and long histories, and one of cold items where there are some; one would be too wide."""
    first = measured.summaries(mains[0])[0]
    cold = any(group["n"] for group in first["groups"]["cold"] if group["name"] == "cold")
    made = []
    for name, title in OTHER_GROUPS.items() if cold else [*OTHER_GROUPS.items()][:1]:
        about = first["definitions"][name]
        about += "" if cold else "; every test item has training interactions, so none is cold"
        table = _methods_table(measured, mains, [name], overall=False)
        made.append(table | {"title": title, "about": about[0].upper() + about[1:]})
    return made


def _methods_table(
    measured: Measured, mains: list[Variant], groups: list[str] | None = None, overall: bool = True
) -> dict[str, Any]:
    document = measured.compare(mains, groups)
    names = [f"{BACKBONES[one.backbone]}, {one.method}" for one in mains]
    order = {one.runs[0]: place for place, one in enumerate(mains)}
    document["variants"].sort(key=lambda entry: order[entry["runs"][0]])
    return _with_settings(_table(document, names, "", overall), document)


def _with_settings(table: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The table, with what was changed of each row's settings; a name of its owner's does not say it."""
    for row, entry in zip(table["rows"], document["variants"], strict=True):
        row["settings"] = shown_changes(entry["changed"])
    return table


def _variants_table(measured: Measured, variants: list[Variant]) -> dict[str, Any]:
    """All variants, also those whose settings differ from a method's main one."""
    document = measured.compare(variants)
    document["variants"].sort(key=natural_order)
    names = [entry["variant"].partition(" ")[0] for entry in document["variants"]]
    return _with_settings(_table(document, names, ""), document)


def _ablation_table(measured: Measured, family: list[Variant]) -> dict[str, Any]:
    """The whole method, then with one part left out; a star marks what is better than the whole."""
    document = measured.compare(family, baseline=family[0].runs[0])
    order = {one.runs[0]: place for place, one in enumerate(family)}
    document["variants"].sort(key=lambda entry: order[entry["runs"][0]])
    changed = shown_changes(family[0].entry["changed"], ", ")
    whole = f"{BACKBONES[family[0].backbone]}, {family[0].method}" + (f" ({changed})" if changed else "")
    names = [whole, *(f"without {' and '.join(one.without)}" for one in family[1:])]
    return _table(document, names, f"The baseline is {whole} with all its parts.")


def _beyond(measured: Measured, mains: list[Variant]) -> dict[str, Any] | None:
    """What the lists of each variant are like, mean over its seeds."""
    # How unlike items are in one LLM's space says nothing beside how unlike they are in another's.
    spaces = [_diversity_space(measured, one) for one in mains]
    commonest = Counter(filter(None, spaces)).most_common(1)
    chosen = commonest[0][0] if commonest else None
    rows, shown_space = [], None
    for one, space in zip(mains, spaces, strict=True):
        found = [summary["beyond"] for summary in measured.summaries(one) if summary["beyond"]]
        if not found:
            return None
        alike = space is not None and space == chosen
        shown_space = found[0]["diversity_space"] if alike else shown_space
        cells = []
        for name, how in BEYOND.items():
            values = [entry[name] for entry in found if entry[name] is not None]
            shown = values and (alike or name != "diversity")
            cells.append(format(float(np.mean(values)), how) if shown else "–")
        rows.append({"name": f"{BACKBONES[one.backbone]}, {one.method}", "cells": cells})
    others = chosen is not None and any(space != chosen for space in spaces)
    return {"columns": list(BEYOND), "rows": rows, "k": found[0]["k"], "space": shown_space, "others": others}


def _diversity_space(measured: Measured, one: Variant) -> str | None:
    """The fingerprint of the LLM embeddings that all runs of a variant were measured in; None where they differ."""
    found = {measured.runs[run].evaluation["made_from"]["inputs"].get("diversity") for run in one.runs}
    return found.pop() if len(found) == 1 else None


def _bars(measured: Measured, mains: list[Variant]) -> list[Figure]:
    """HR@10 by popularity bin of the target (LLMEmb Figure 5), a figure a backbone."""
    made = []
    for backbone in dict.fromkeys(one.backbone for one in mains):
        series: dict[str, list[float | None]] = {}
        for one in mains:
            if one.backbone != backbone:
                continue
            bins = [summary["groups"]["popularity_bins"] for summary in measured.summaries(one)]
            series[one.method] = [_mean([found[at]["HR@10"] for found in bins]) for at in range(len(bins[0]))]
        sizes = [group["n"] for group in bins[0]]
        used = [at for at, n in enumerate(sizes) if n]
        names = [bins[0][at]["name"] for at in used]
        shown = {name: [values[at] for at in used] for name, values in series.items()}
        ticks = [f"{name}\nn={sizes[at]:,}" for name, at in zip(names, used, strict=True)]
        wide = len(shown) > figures.NARROW_SERIES
        made.append(
            Figure(
                f"{protocol_name(measured.settings)}-groups-{backbone}",
                f"{BACKBONES[backbone]}: HR@10 by training interactions of the target",
                [figures.bars(ticks, shown, "HR@10", places=METHOD_PLACES)],
                {"bin": names, "users": [sizes[at] for at in used], **shown},
                wide=wide,
                narrow=figures.bars(ticks, shown, "HR@10", places=METHOD_PLACES, narrow=True) if wide else "",
            )
        )
    return made


def _mean(values: list[float | None]) -> float | None:
    some = [value for value in values if value is not None]
    return float(np.mean(some)) if some else None


def _sweep(settings: Settings, key: str, members: list[Variant]) -> Figure:
    """Metrics over one setting (LLMEmb Figure 4): a panel for all users and one for the tail."""
    ticks = [f"{one.value(key):g}" for one in members]
    shown = [part for part in ("overall", "tail") if part in members[0].entry["parts"]]
    columns: dict[str, list[Any]] = {key: [one.value(key) for one in members]}
    panels = []
    for part in shown:
        values = {metric: [one.entry["parts"][part][metric]["mean"] for one in members] for metric in METRICS}
        columns |= {f"{part} {metric}": found for metric, found in values.items()}
        places = list(range(len(members)))
        curves = {metric: (places, found) for metric, found in values.items()}
        panels.append(
            figures.lines(curves, key, "", ticks=ticks, title=f"{part} users" if part != "overall" else "all users")
        )
    columns["seeds"] = [len(one.runs) for one in members]
    first = members[0]
    title = f"{BACKBONES[first.backbone]}, {first.method}: {key.replace('_', ' ')}"
    name = f"{protocol_name(settings)}-sweep-{first.backbone}-{first.method}-{key}"
    return Figure(name, title, panels, columns)


def _all_runs(found: list[Evaluated]) -> list[dict[str, Any]]:
    """Every run by itself, without tests."""
    rows = []
    for one in found:
        summary = one.evaluation["summary"]
        parts = [summary["overall"], *summary["groups"]["popularity"]]
        rows.append({"run": one.run, "figures": [part[metric] for part in parts for metric in METRICS]})
    return rows
