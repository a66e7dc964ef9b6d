"""RandomDrop: an item seen through some of its attributes (LLMEmb section 3.2)."""

from __future__ import annotations

import numpy as np


def random_drop(parts: list[str], ratio: float, rng: np.random.Generator) -> list[str]:
    """A view of an item: its attributes in random order, int(ratio * n) of them left out, never all.

    The order is drawn as well, as in the authors' code, so that two views differ also with ratio 0.
    """
    kept = max(1, len(parts) - int(len(parts) * ratio))
    return [parts[i] for i in rng.permutation(len(parts))[:kept]]
