"""Negative items, drawn in bulk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

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

    def own_items(self, device: str) -> OwnItems:
        """The users' own items, for draws on `device`."""
        every, places = self.n_items + 1, np.arange(len(self._pairs))
        first = np.cumsum(self._own) - self._own
        user = self._pairs // every
        # Users who have had every item are as if they had had none: they get any.
        some = self._own[user] < self.n_items
        keys = (self._pairs - (places - first[user]))[some]
        begin = every * np.arange(len(self._own))
        others = np.where(self._own < self.n_items, self.n_items - self._own, self.n_items)
        users = np.stack([others, begin + 1, begin + np.searchsorted(keys, begin)], axis=1)
        return OwnItems(torch.from_numpy(keys).to(device), torch.from_numpy(users).to(device))


@dataclass(frozen=True)
class OwnItems:
    """Which items a user has had, so that the others can be counted without a look at each.

    Attributes:
        keys: (pairs,) int64, in order: the user's number times (n_items + 1), plus the item, minus how many smaller
            items the user has had.
        users: (users, 3) int64: how many items each has not had, the user's smallest key, and by how much a key and
            the number of keys up to it are more than an item.
    """

    keys: torch.Tensor
    users: torch.Tensor

    def draw(self, owners: torch.Tensor, count: int) -> torch.Tensor:
        """As `NegativeSampler.draw`, on a device, from its own generator and without drawing anything again.

        The r-th item that a user has not had is r plus the number of own items before it: those whose key is at most
        the user's key of r.

        Args:
            owners: (n,) int64.

        Returns:
            (n, count) int64.
        """
        others, least, more = self.users.index_select(0, owners)[:, None].unbind(2)
        # In double precision: a float has too few steps for a large catalogue.
        drawn = torch.rand(len(owners), count, dtype=torch.float64, device=owners.device)
        key = (drawn * others).long() + least
        return torch.searchsorted(self.keys, key, right=True) + key - more
