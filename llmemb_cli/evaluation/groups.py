"""Groups of test users: by popularity of the target, length of history, or targets never seen in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmemb_cli.datasets.popularity import tail_items
from llmemb_cli.datasets.split import SplitData

BINS = ((0, 0, "0"), (1, 4, "1-4"), (5, 9, "5-9"), (10, 19, "10-19"), (20, 39, "20-39"), (40, np.inf, "40+"))


@dataclass(frozen=True)
class Grouping:
    """A partition of the test users.

    Attributes:
        definition: what decides the group, with its threshold.
        names: of the groups.
        labels: (test users,) int, place in `names`.
    """

    definition: str
    names: list[str]
    labels: np.ndarray


def make_groupings(
    data: SplitData, users: np.ndarray, tail_share: float, threshold: int | None, bins: str = "counts"
) -> Mapping[str, Grouping]:
    """Every grouping of `llmemb eval --groups`, by its name; `popularity` also has `popularity_bins`."""
    targets = data.test[users]
    counts = data.train_counts[targets]
    tail = tail_items(data.train_counts, tail_share, threshold)
    largest = int(data.train_counts[tail].max(initial=0))
    definition = (
        f"tail: target with fewer than {threshold} training interactions"
        if threshold is not None
        else f"tail: target among the least popular {tail_share:.0%} of items (at most {largest} in training)"
    )
    lengths = data.test_history().lengths()[users]
    middle = int(np.median(lengths)) if len(lengths) else 0
    return {
        "popularity": Grouping(definition, ["tail", "head"], np.where(tail[targets], 0, 1)),
        "popularity_bins": _quantile_bins(counts) if bins == "quantiles" else _count_bins(counts),
        "length": Grouping(
            f"short: history of at most {middle} items, the median", ["short", "long"], (lengths > middle).astype(int)
        ),
        "cold": Grouping("cold: target without any training interaction", ["cold", "warm"], (counts > 0).astype(int)),
    }


def _count_bins(counts: np.ndarray) -> Grouping:
    return Grouping(
        "training interactions of the target (LLMEmb Figure 5)",
        [name for _, _, name in BINS],
        np.searchsorted([low for low, _, _ in BINS], counts, side="right") - 1,
    )


def _quantile_bins(counts: np.ndarray) -> Grouping:
    """Five bins of about equal size; equal counts stay together, so there can be fewer."""
    uppers = [int(upper) for upper in np.unique(np.quantile(counts, [0.2, 0.4, 0.6, 0.8, 1.0], method="higher"))]
    lowers = [0, *(upper + 1 for upper in uppers[:-1])]
    names = [f"{low}-{high}" for low, high in zip(lowers, uppers, strict=True)]
    return Grouping(
        "training interactions of the target, fifths of the test users", names, np.searchsorted(uppers, counts)
    )
