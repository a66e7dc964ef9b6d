"""The report's parts on the data: sizes, source, popularity, prompts."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.card import histogram, share_of_top_fifth
from llmemb_cli.datasets.card_text import time_line
from llmemb_cli.datasets.popularity import tail_items
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.prompts.views import random_drop
from llmemb_cli.reporting import figures
from llmemb_cli.reporting.figures import Figure
from llmemb_cli.reporting.popularity import METRIC, mean_rates
from llmemb_cli.reporting.variants import BACKBONES, METHOD_PLACES, of_one_backbone
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest, require_stage

CURVE_POINTS = 400
EXAMPLES = 3
DRAWN = ("none", "llmemb")  # whose HR@10 is drawn over the items


def page_tail(data: SplitData, settings: Settings, results: list[dict[str, Any]]) -> np.ndarray:
    """(n_items + 1,) bool: the items that are the tail on the whole page, those of the first results."""
    share, threshold = settings.data.tail_share, settings.eval.tail_threshold
    if results:
        share, threshold = results[0]["tail"]
    return tail_items(data.train_counts, share, threshold)


def data_part(
    workspace: Workspace, data: SplitData, tail: np.ndarray, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """The data card, items by popularity bin with HR@10 over them, and the curve of popularity.

    Args:
        tail: of `page_tail`; the card's own knows nothing of a threshold of evaluations.
        results: of `result_parts`; the first protocol's figures are drawn.
    """
    summary = require_stage(workspace.data, made_by="llmemb init")["summary"]
    ordered = np.sort(data.train_counts[1:])[::-1]
    places = np.arange(1, len(ordered) + 1)
    if len(ordered) > CURVE_POINTS:
        places = np.unique(np.geomspace(1, len(ordered), CURVE_POINTS).round().astype(int))
    some = places[ordered[places - 1] > 0]
    curve = figures.lines(
        {"": (some.tolist(), ordered[some - 1].tolist())},
        "items, most popular first",
        "training interactions",
        logarithmic="xy",
    )
    share = np.cumsum(ordered)[places - 1] / max(int(ordered.sum()), 1)
    fifth = share_of_top_fifth(ordered)
    return {
        "summary": summary,
        "times": time_line(summary),
        "tail": {
            "items": int(tail.sum()),
            "largest_count": int(data.train_counts[tail].max(initial=0)),
            "share_of_test": float(tail[data.test[data.test > 0]].mean()) if (data.test > 0).any() else 0.0,
        },
        "bins": _bins(workspace, data, results[0] if results else None),
        "curve": Figure(
            "popularity-curve",
            "Popularity of items",
            [curve],
            {
                "place": places.tolist(),
                "training_interactions": ordered[places - 1].tolist(),
                "cumulative_share": share.tolist(),
            },
            f"The most popular fifth of the items has {fifth:.0%} of the training interactions.",
        ),
    }


def _bins(workspace: Workspace, data: SplitData, results: dict[str, Any] | None) -> Figure:
    """Items by popularity, with HR@10 of the methods that the paper draws there: none, and llmemb beside it."""
    bins = histogram(data.train_counts, data.test[data.test > 0])
    mains = of_one_backbone(results["mains"]) if results else []
    shown = [one for one in mains if one.method in DRAWN] or mains[:1]
    curves = {
        f"{BACKBONES[one.backbone]}, {one.method}": mean_rates(
            [workspace.evaluation(run, results["name"]) for run in one.runs], bins
        )
        for one in shown
        if results
    }
    places = {f"{BACKBONES[one.backbone]}, {one.method}": METHOD_PLACES[one.method] for one in shown}
    columns: dict[str, list[Any]] = {key: [entry[key] for entry in bins] for key in bins[0]}
    seeds = ", mean over seeds" if any(len(one.runs) > 1 for one in shown) else ""
    return Figure(
        "items-by-popularity",
        "Items by training interactions" + (f", and {METRIC} (the paper's Figure 1a)" if curves else ""),
        [figures.popularity(bins, curves, METRIC, places)],
        columns | {f"{METRIC} {name}": rates for name, rates in curves.items()},
        f"{METRIC}: {results['protocol']}{seeds}." if results else "",
        wide=True,
        narrow=figures.popularity(bins, curves, METRIC, places, narrow=True),
    )


def prompt_part(workspace: Workspace, settings: Settings) -> list[dict[str, Any]]:
    """Three items with their full prompt and two views."""
    if read_manifest(workspace.prompts) is None:
        return []
    frame, summary = read_prompts(workspace)
    rng = numpy_rng(settings.seed, "report-prompts")
    examples = []
    for row in rng.choice(len(frame), size=min(EXAMPLES, len(frame)), replace=False):
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
