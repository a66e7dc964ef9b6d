"""Beyond accuracy: what the recommendations are like, whoever they hit."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK = 8192  # items
LISTS = 1024


def beyond_accuracy(top: np.ndarray, train_counts: np.ndarray, vectors: np.ndarray | None) -> dict[str, Any]:
    """Figures of all users' top-k lists (docs/evaluation.md defines each).

    Args:
        top: (users, k) int, item numbers, best first; 0 = no item.
        train_counts: (n_items + 1,) int, training interactions; index 0 is the padding.
        vectors: (n_items, d) float, LLM embeddings for the diversity, or None.

    Returns:
        coverage, gini, popularity (mean training count), novelty (bits), diversity (None without vectors).
    """
    shown = np.bincount(top.ravel(), minlength=len(train_counts))[1:]
    listed = top[top > 0]
    counts = train_counts[1:].astype(np.float64)
    surprise = -np.log2((counts + 1) / (counts + 1).sum())
    return {
        "coverage": float((shown > 0).mean()),
        "gini": gini(shown),
        "popularity": float(counts[listed - 1].mean()) if len(listed) else None,
        "novelty": float(surprise[listed - 1].mean()) if len(listed) else None,
        "diversity": None if vectors is None else list_diversity(top, vectors),
    }


def gini(counts: np.ndarray) -> float:
    """Inequality of non-negative counts: 0 all equal, near 1 everything on one."""
    values = np.sort(counts.astype(np.float64))
    total = values.sum()
    if total == 0:
        return 0.0
    places = np.arange(1, len(values) + 1)
    return float(((2 * places - len(values) - 1) * values).sum() / (len(values) * total))


def list_diversity(top: np.ndarray, vectors: np.ndarray) -> float | None:
    """Mean over lists of 1 - cosine, averaged over the pairs of items in a list; None if no list has a pair.

    The mean cosine of all pairs follows from the length of the sum of the unit vectors, so no pair is formed.
    """
    # LLM states share a large common direction; without taking the mean away every list looks alike.
    parts = [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]
    mean = (sum(part.sum(axis=0, dtype=np.float64) for part in parts) / len(vectors)).astype(np.float32)
    sizes = (top > 0).sum(axis=1)
    total, lists = 0.0, 0
    for start in range(0, len(top), LISTS):
        part, size = top[start : start + LISTS], sizes[start : start + LISTS]
        # Only the items of these lists are looked up: the table may be a mapped file larger than the memory.
        shown, place = np.unique(part, return_inverse=True)
        unit = vectors[np.maximum(shown - 1, 0)] - mean
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        unit[shown == 0] = 0
        together = np.zeros((len(part), unit.shape[1]), dtype=np.float32)
        for column in place.reshape(part.shape).T:
            together += unit[column]
        pairs = size * (size - 1)
        cosine = ((together.astype(np.float64) ** 2).sum(axis=1) - size)[pairs > 0] / pairs[pairs > 0]
        total, lists = total + float((1 - cosine).sum()), lists + len(cosine)
    return total / lists if lists else None
