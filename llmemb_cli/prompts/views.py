"""RandomDrop: an item seen through some of its attributes (LLMEmb section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def random_drop(parts: list[str], ratio: float, rng: np.random.Generator) -> list[str]:
    """A view of an item: its attributes in random order, int(ratio * n) of them left out, never all.

    The order is drawn as well, as in the authors' code, so that two views differ also with ratio 0.
    """
    kept = max(1, len(parts) - int(len(parts) * ratio))
    return [parts[i] for i in rng.permutation(len(parts))[:kept]]


def other_drop(
    parts: list[str], ratio: float, rng: np.random.Generator, unlike: list[str], tries: int = 16
) -> list[str]:
    """A view that keeps other attributes than the view `unlike`, where the item has enough of them.

    For measuring: finding a text by itself says nothing about a model.
    """
    view = random_drop(parts, ratio, rng)
    for _ in range(tries):
        if set(view) != set(unlike) or len(view) == len(parts):
            break
        view = random_drop(parts, ratio, rng)
    return view


def not_negatives(
    first: Sequence[Sequence[str]], second: Sequence[Sequence[str]], prompts: Sequence[str]
) -> np.ndarray:
    """Which pairs of items cannot be told apart by what their views show, and so are no negatives.

    Items i and j are such a pair when any view of i keeps the same attribute texts as any view of j (in whatever
    order), or when their full prompts are equal. Also two equal first views count: with one of them pulled towards
    its own second view, the other would push the same text away from it.

    Args:
        first, second: the kept attribute texts of the two views of n items.
        prompts: their full prompts.

    Returns:
        (n, n) bool, symmetric, True on the diagonal.
    """
    numbers: dict[frozenset[str], int] = {}
    one, two = (
        np.array([numbers.setdefault(frozenset(view), len(numbers)) for view in views]) for views in (first, second)
    )
    names: dict[str, int] = {}
    full = np.array([names.setdefault(prompt, len(names)) for prompt in prompts])
    crossed = one[:, None] == two[None, :]
    same: np.ndarray = crossed | crossed.T | (full[:, None] == full[None, :])
    same |= (one[:, None] == one[None, :]) | (two[:, None] == two[None, :])
    np.fill_diagonal(same, True)
    return same
