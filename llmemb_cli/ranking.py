"""From scores to ranks to metrics. One target a user; ties always count against the target."""

from __future__ import annotations

import numpy as np
import torch


def rank_of_target(target: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """1-based rank of each target among its competitors.

    Args:
        target: (batch,) float, score of the target.
        others: (batch, n) float, scores of the competitors, the target not among them; -inf: not a competitor.

    Returns:
        (batch,) int64: 1 + the number of competitors that score at least as high. A NaN score of a target
        ranks it last.
    """
    ranks = 1 + others.shape[1] - _count(others < target[:, None])
    # Beaten by the target are also those that do not compete, unless its own score is -inf or NaN.
    odd = torch.nonzero(~(target > -torch.inf))[:, 0]
    if len(odd):
        ranks[odd] = 1 + _count((others[odd] != -torch.inf) & ~(others[odd] < target[odd, None]))
    return ranks


def _count(marks: torch.Tensor) -> torch.Tensor:
    """(batch,) int64: how many of (batch, n) bool are set. As bytes: torch adds up booleans ten times slower."""
    return marks.view(torch.uint8).sum(dim=1, dtype=torch.int32).long()


def hit_rate(ranks: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64: 1 where the rank is at most `k`."""
    return (ranks <= k).astype(np.float64)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64: share of a user's targets ranked at most `k`. With one target it is the hit rate."""
    return hit_rate(ranks, k)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64: 1 / log2(rank + 1) where the rank is at most `k`, else 0."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def reciprocal_rank(ranks: np.ndarray, k: int | None = None) -> np.ndarray:
    """(n,) float64: 1 / rank; with `k`, 0 where the rank is beyond it."""
    values = 1.0 / ranks.astype(np.float64)
    return values if k is None else np.where(ranks <= k, values, 0.0)
