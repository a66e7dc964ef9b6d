"""Beyond accuracy: what the recommendations are like, whoever they hit."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK = 4096


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
    vectors = vectors - vectors.mean(axis=0)
    unit = np.zeros((len(vectors) + 1, vectors.shape[1]), dtype=np.float32)
    unit[1:] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    sizes = (top > 0).sum(axis=1)
    total, lists = 0.0, 0
    for start in range(0, len(top), BLOCK):
        part, size = top[start : start + BLOCK], sizes[start : start + BLOCK]
        together = np.zeros((len(part), unit.shape[1]), dtype=np.float32)
        for column in part.T:
            together += unit[column]
        pairs = size * (size - 1)
        cosine = ((together.astype(np.float64) ** 2).sum(axis=1) - size)[pairs > 0] / pairs[pairs > 0]
        total, lists = total + float((1 - cosine).sum()), lists + len(cosine)
    return total / lists if lists else None
