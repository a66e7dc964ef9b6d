"""Negative items, drawn in bulk."""

from __future__ import annotations

import numpy as np

from llmemb_cli.datasets.split import Ragged


class NegativeSampler:
    """Uniform negatives that the user has not had in training.

    A draw that hits one of the user's own items is drawn again; (user, item) pairs are looked up in one sorted array.
    """

    def __init__(self, train: Ragged, n_items: int) -> None:
        users = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths())
        self._pairs = np.unique(users * (n_items + 1) + train.values)
        self._own = np.bincount(self._pairs // (n_items + 1), minlength=len(train))
        self.n_items = n_items

    def draw(self, owners: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` negatives for each target.

        Args:
            owners: (n,) int, the row of `train` that each target belongs to.
            count: negatives per target.
            rng: the stream to draw from.

        Returns:
            (n, count) int64, items 1..n_items. A user who has had every item gets any item.
        """
        drawn = rng.integers(1, self.n_items + 1, size=(len(owners), count))
        owner = np.broadcast_to(owners[:, None], drawn.shape)
        redraw = self._is_own(owner, drawn) & (self._own[owner] < self.n_items)
        while redraw.any():
            drawn[redraw] = rng.integers(1, self.n_items + 1, size=int(redraw.sum()))
            again = self._is_own(owner[redraw], drawn[redraw])
            redraw[redraw] = again
        return drawn

    def _is_own(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = users * (self.n_items + 1) + items
        place = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        return self._pairs[place] == keys
