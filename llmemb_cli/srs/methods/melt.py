"""MELT (Kim et al., SIGIR 2023): branches that lift short histories and rare items, heads first.

The model has been trained before with its own loss; everything then trains together. Differences from the paper are
marked [choice].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import PAD, Ragged, SplitData
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.item_embedding import ItemTable
from llmemb_cli.srs.methods.branches import MeltBranches
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import left_padded

BLOCK = 1024  # contexts that are encoded at a time
ITEM_QUANTILE_BELOW = 0.02  # items count as head from a quantile this much lower than users
ITEM_SPAN = 50  # interactions beyond the threshold over which an item's weight moves


@dataclass(frozen=True)
class Contexts:
    """Every occurrence of every item in training, twice: the history up to it, and what follows it, reversed.

    Context 2 o is the history that ends with occurrence o, context 2 o + 1 the later items read backwards, so that
    the item again comes last. The second exists only in sequences of more than one item.

    Attributes:
        train: the training sequences.
        begin, end: (occurrences,) where the sequence of each occurrence starts and ends in `train.values`.
        of_item: the contexts of item i are row i - 1.
    """

    train: Ragged
    begin: np.ndarray
    end: np.ndarray
    of_item: Ragged

    def rows(self, contexts: np.ndarray, max_length: int) -> torch.Tensor:
        """(n, length) int64 sequences of contexts, left-padded, at most `max_length` of the newest items."""
        at, backwards = contexts // 2, contexts % 2 == 1
        lengths = np.where(backwards, self.end[at] - at, at - self.begin[at] + 1)
        lengths = np.minimum(lengths, max_length)
        older = int(lengths.max()) - 1 - np.arange(int(lengths.max()))  # how far before the newest item
        place = at[:, None] + np.where(backwards[:, None], older, -older)
        inside = older < lengths[:, None]
        return torch.from_numpy(np.where(inside, self.train.values[np.where(inside, place, 0)], PAD).astype(np.int64))


def make_contexts(train: Ragged, n_items: int) -> Contexts:
    """All contexts of all items."""
    lengths = train.lengths()
    occurrences = np.arange(len(train.values))
    begin, end = np.repeat(train.offsets[:-1], lengths), np.repeat(train.offsets[1:], lengths)
    both = np.concatenate([2 * occurrences, 2 * occurrences[end - begin > 1] + 1])
    items = train.values[both // 2]
    order = np.lexsort((both, items))
    counts = np.bincount(items, minlength=n_items + 1)[1:]
    return Contexts(train, begin, end, Ragged(both[order], np.concatenate([[0], np.cumsum(counts)])))


def user_weights(lengths: np.ndarray, threshold: int, max_length: int, progress: float) -> np.ndarray:
    """|sin(pi/2 progress + pi/(2 (L - k - 1)) (length - k - 1))|: heads first, then those near the threshold.

    The second part ends at pi/2, at L items, or one beyond k + 1 where k is L - 1 or more [choice]: further on, the
    sine would put longer histories last again.
    """
    span = max(max_length - threshold - 1, 1)
    beyond = np.clip(lengths - threshold - 1, 0, span)
    return np.abs(np.sin(math.pi / 2 * progress + math.pi / (2 * span) * beyond))


def item_weights(counts: np.ndarray, threshold: int, progress: float) -> np.ndarray:
    """|sin(pi/2 progress + pi/100 (min(n, k + 50) - k - 1))|."""
    beyond = np.minimum(counts, threshold + ITEM_SPAN) - threshold - 1
    return np.abs(np.sin(math.pi / 2 * progress + math.pi / (2 * ITEM_SPAN) * beyond))


class Melt:
    """Both branches' losses, and the overwriting of rare items' embeddings at the start of an epoch."""

    recordable = False  # the CPU makes sequences of its own for every step

    def __init__(self, settings: Settings, data: SplitData, model: Recommender, device: str) -> None:
        rat = settings.rat
        self.rat, self.seed, self.train, self.device = rat, settings.seed, data.train, device
        self.contexts = make_contexts(data.train, data.n_items)
        self.lengths, self.counts = data.train.lengths(), data.train_counts[1:]
        self.user_threshold = int(np.quantile(self.lengths[self.lengths > 0], rat.melt_tail_share))
        share = max(rat.melt_tail_share - ITEM_QUANTILE_BELOW, 0.0)
        self.item_threshold = max(int(np.quantile(self.counts, share)), 1)
        self.head_users = np.flatnonzero(self.lengths > self.user_threshold)
        self.head_items = np.flatnonzero(self.counts > self.item_threshold)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        self.tail_items = np.flatnonzero((self.counts <= self.item_threshold) & (self.counts > 0))
        _branches(model).user_threshold.fill_(self.user_threshold)

    @torch.no_grad()
    def start_epoch(self, model: Recommender, epoch: int) -> None:
        """E_i <- W_I mean of f(context) over the contexts of every rare item (no W_U here)."""
        model.train(False)
        rng = numpy_rng(self.seed, "melt-overwrite", epoch)
        chosen = [self._some(item, None, rng) for item in self.tail_items.tolist()]
        if chosen:
            means = self._mean_states(model, chosen, lifted=False)
            assert isinstance(model.embedding, ItemTable)
            place = torch.from_numpy(self.tail_items).to(self.device)
            model.embedding.weight[place] = _branches(model).item(means)

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        progress = step.epoch / self.rat.epochs
        users = self._part(self.head_users, step, "users")
        items = self._part(self.head_items, step, "items")
        total = next(model.parameters()).new_zeros(())
        if self.user_threshold >= 2 and len(users):
            few = np.array([step.rng.integers(1, self.user_threshold) for _ in users])
            total = total + self.rat.melt_user_weight * self._user_loss(model, users, few, progress, step)
        if len(items):
            chosen = [self._some(item, step.rng, step.rng) for item in items.tolist()]
            total = total + self.rat.melt_item_weight * self._item_loss(model, items, chosen, progress, step)
        return total

    def _part(self, heads: np.ndarray, step: Step, label: str) -> np.ndarray:
        """The heads of this step: a new order each epoch, as many a step as use them all up in an epoch."""
        epoch, order = self._orders.get(label, (None, heads))
        if epoch != step.epoch:
            order = numpy_rng(self.seed, "melt", label, step.epoch).permutation(heads)
            self._orders[label] = step.epoch, order
        size = len(heads) // max(step.steps - 1, 1) + 1
        return order[step.number * size : (step.number + 1) * size]

    def _some(self, item: int, size: np.random.Generator | None, rng: np.random.Generator) -> np.ndarray:
        """Contexts of an item: all, or with `size` a random number of them; never more than `melt_contexts`."""
        every = self.contexts.of_item.row(item)
        count = len(every)
        if size is not None:
            count = int(size.integers(1, min(count, self.item_threshold) + 1))
        if self.rat.melt_contexts:
            count = min(count, self.rat.melt_contexts)
        return every if count == len(every) else rng.choice(every, count, replace=False)

    def _user_loss(
        self, model: Recommender, users: np.ndarray, few: np.ndarray, progress: float, step: Step
    ) -> torch.Tensor:
        """Mean over users and dimensions of w_u (W_U f(last R items) - f(S_u))^2."""
        mine = np.arange(step.peers.rank, len(users), step.peers.size)
        if not len(mine):
            return next(model.parameters()).new_zeros(())
        users, few, count = users[mine], few[mine], len(users)
        full = left_padded(self.train, users, model.max_length).to(self.device)
        width = full.shape[1]
        short = full * (torch.arange(width) >= width - torch.from_numpy(few)[:, None]).to(self.device)
        whole = model.last_states(full)
        guess = _branches(model).user(model.last_states(short[:, -int(few.max()) :]))
        weights = user_weights(self.lengths[users], self.user_threshold, model.max_length, progress)
        return _weighted_square(guess - whole, weights) / count

    def _item_loss(
        self, model: Recommender, items: np.ndarray, chosen: list[np.ndarray], progress: float, step: Step
    ) -> torch.Tensor:
        """Mean over items and dimensions of w_i (W_I mean(c + W_U c) - E_i)^2, c = f(context)."""
        mine = range(step.peers.rank, len(items), step.peers.size)
        if not len(mine):
            return next(model.parameters()).new_zeros(())
        own = items[list(mine)]
        means = self._mean_states(model, [chosen[i] for i in mine], lifted=True)
        embedded = model.embedding.known(torch.from_numpy(own + 1).to(self.device))
        weights = item_weights(self.counts[own], self.item_threshold, progress)
        return _weighted_square(_branches(model).item(means) - embedded, weights) / len(items)

    def _mean_states(self, model: Recommender, chosen: list[np.ndarray], *, lifted: bool) -> torch.Tensor:
        """(items, d): the mean of f(context), or of f + W_U f, over the chosen contexts of each item."""
        sizes = np.array([len(part) for part in chosen])
        flat = np.concatenate(chosen)
        # Contexts of like length pass together.
        at = flat // 2
        reach = np.where(flat % 2 == 1, self.contexts.end[at] - at, at - self.contexts.begin[at])
        order = np.argsort(reach, kind="stable")
        owner = torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes)[order]).to(self.device)
        owners, parts = owner.split(BLOCK), self._states(model, flat[order])
        if lifted:
            # The backward pass needs them all in any case.
            states = torch.cat(list(parts))
            owners, parts = (owner,), iter([states + _branches(model).user(states)])
        total = torch.zeros(len(chosen), model.embedding.width, device=self.device)
        for whose, states in zip(owners, parts, strict=True):
            total.index_add_(0, whose, states)
        return total / torch.from_numpy(sizes).to(self.device, total.dtype)[:, None]

    def _states(self, model: Recommender, contexts: np.ndarray) -> Iterator[torch.Tensor]:
        """(at most BLOCK, d) at a time: f(context) of every context, in order."""
        for first in range(0, len(contexts), BLOCK):
            rows = self.contexts.rows(contexts[first : first + BLOCK], model.max_length)
            yield model.last_states(rows.to(self.device))


def _branches(model: Recommender) -> MeltBranches:
    assert model.branches is not None
    return model.branches


def _weighted_square(difference: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """Sum over rows of weight times the mean square of a row."""
    return (difference.pow(2).mean(dim=1) * torch.from_numpy(weights).to(difference)).sum()
