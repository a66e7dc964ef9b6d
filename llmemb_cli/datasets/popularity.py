"""Which items are popular, counted on training interactions alone."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

# The bins of LLMEmb Figure 5; above its last one they go on doubling, so that a popular head is not one bar.
_STARTS = (0, 1, 5, 10, 20, 40)


class Bin(NamedTuple):
    """Items with `low` to `high` training interactions; `bin` says so."""

    bin: str
    low: int
    high: int


def count_bins(largest: int) -> list[Bin]:
    """Bins that hold every count from 0 to `largest`: 0, 1-4, 5-9, 10-19, 20-39, 40-79, 80-159, ..."""
    starts = list(_STARTS)
    while starts[-1] <= largest:
        starts.append(starts[-1] * 2)
    return [
        Bin(f"{low:,}-{after - 1:,}" if after - 1 > low else str(low), low, after - 1)
        for low, after in pairwise(starts)
        if low <= largest
    ]


def bin_places(counts: np.ndarray, bins: list[Bin]) -> np.ndarray:
    """The place in `bins` of every count, as int."""
    return np.searchsorted([one.low for one in bins], counts, side="right") - 1


def tail_items(train_counts: np.ndarray, tail_share: float, threshold: int | None = None) -> np.ndarray:
    """Which items are the tail: the least popular `tail_share` of them (LLMEmb section 4.1).

    Args:
        train_counts: (n_items + 1,) int, training interactions; index 0 is the padding.
        tail_share: share of the items, ties at the border are broken by item order.
        threshold: if given, the tail is every item with fewer training interactions instead.

    Returns:
        (n_items + 1,) bool; the padding is False.
    """
    tail = np.zeros(len(train_counts), dtype=bool)
    if threshold is not None:
        tail[1:] = train_counts[1:] < threshold
        return tail
    n_items = len(train_counts) - 1
    order = np.argsort(train_counts[1:], kind="stable")
    tail[1 + order[: round(n_items * tail_share)]] = True
    return tail
