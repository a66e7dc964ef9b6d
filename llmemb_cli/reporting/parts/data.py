"""The report's parts on the data: sizes, source, popularity, prompts."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.card import histogram, share_of_top_fifth
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.prompts.views import random_drop
from llmemb_cli.reporting import figures
from llmemb_cli.reporting.figures import Figure
from llmemb_cli.reporting.popularity import METRIC, popularity_curve, run_label
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import read_manifest, require_stage

CURVE_POINTS = 400
EXAMPLES = 3


def data_part(workspace: Workspace, data: SplitData) -> dict[str, Any]:
    """The data card, items by popularity bin with the newest run's HR@10, and the curve of popularity."""
    summary = require_stage(workspace.data, made_by="llmemb init")["summary"]
    bins = popularity_curve(workspace, histogram(data.train_counts, data.test[data.test > 0]))
    label = run_label(bins["run"]) if bins["run"] else ""
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
        "bins": Figure(
            "items-by-popularity",
            "Items by training interactions" + (", and a run's HR@10 (the paper's Figure 1a)" if label else ""),
            [figures.popularity(bins["bins"], label, METRIC)],
            {key: [entry[key] for entry in bins["bins"]] for key in bins["bins"][0]},
            wide=True,
        ),
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
