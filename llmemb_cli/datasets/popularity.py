"""Which items are popular, counted on training interactions alone."""

from __future__ import annotations

import numpy as np


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
