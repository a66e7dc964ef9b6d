"""Where each test target ranks: among the whole catalogue, or among sampled candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from llmemb_cli.datasets.split import Ragged, SplitData
from llmemb_cli.ranking import rank_of_target
from llmemb_cli.srs.sequences import left_padded

# Scores held at once (256 MB in float32); with many items a block has fewer users than `batch_users`.
MOST_SCORES = 64_000_000
# Users encoded at once on a CPU: their states fit its cache, which is twice as fast as 512 at once.
ENCODED_AT_ONCE = 128
# Numbers in the vectors of candidates that are scored at once (64 users with 100 of 128 numbers): they fit a
# processor's cache. Where they do not, fresh memory for every block takes ten times as long as the products.
LOOKED_UP = 64 * 101 * 128
# To look up one candidate's vector takes about as long as to score so many items of the catalogue in one product.
LOOKUP_COST = 30
# A matrix product of very few rows rounds by position, and equal items would not tie.
LEAST_ROWS = 16


class Scorer(Protocol):
    """What evaluation needs of a recommender."""

    max_length: int

    @property
    def item_table(self) -> torch.Tensor: ...

    @property
    def item_bias(self) -> torch.Tensor | None: ...

    def encode(self, sequences: torch.Tensor) -> torch.Tensor: ...


class Ranking(NamedTuple):
    """What a model does with the whole catalogue.

    Attributes:
        ranks: (users,) int64, 1-based rank of each user's test item.
        top: (users, k) int32, the best items, best first; 0 where a user has none left.
    """

    ranks: np.ndarray
    top: np.ndarray


def state_blocks(
    model: Scorer, history: Ragged, users: np.ndarray, batch_users: int, device: str
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Places in `users` and states (block, d); users of similar history length stand together."""
    order = np.argsort(history.lengths()[users], kind="stable")
    for start in range(0, len(order), batch_users):
        places = order[start : start + batch_users]
        step = ENCODED_AT_ONCE if device == "cpu" else batch_users
        parts = [places[at : at + step] for at in range(0, len(places), step)]
        states = [model.encode(left_padded(history, users[part], model.max_length).to(device)) for part in parts]
        yield places, torch.cat(states)


def score_all(states: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(block, n_items + 1) float scores; the padding scores -inf."""
    padded = nn.functional.pad(states, (0, 0, 0, max(0, LEAST_ROWS - len(states))))
    scores = (padded @ table.T)[: len(states)]
    if bias is not None:
        scores += bias
    scores[:, 0] = -torch.inf
    return scores


def _dot(states: torch.Tensor, items: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(block, n) float: each state (block, d) times the vectors of its items (block, n).

    A product and a sum, not a matrix product: that rounds by position, and equal items would not tie.
    """
    return nn.functional.embedding(items, table).mul_(states[:, None, :]).sum(dim=2)


def _looked_up(
    states: torch.Tensor, items: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(block, n) float scores of each state's own items (block, n), a few users at a time."""
    at_once = max(1, LOOKED_UP // (items.shape[1] * table.shape[1]))
    scores = torch.cat([_dot(*part, table) for part in zip(states.split(at_once), items.split(at_once), strict=True)])
    return scores if bias is None else scores + bias[items]


def best_items(scores: torch.Tensor, k: int) -> np.ndarray:
    """(block, k) int32: the highest-scored items, best first; 0 where fewer than k are in the running."""
    values, items = scores.topk(min(k, scores.shape[1]), dim=1)
    found = items.masked_fill_(values == -torch.inf, 0).cpu().numpy().astype(np.int32)
    return np.pad(found, ((0, 0), (0, k - found.shape[1])))


@torch.no_grad()
def full_ranking(
    model: Scorer,
    data: SplitData,
    users: np.ndarray,
    *,
    top: int = 0,
    exclude_history: bool = True,
    batch_users: int = 512,
    device: str = "cpu",
) -> Ranking:
    """Rank the users' test items among all items, ties against the target, and take each user's best items.

    Args:
        users: (n,) int64.
        top: how many best items to take, the target among them.
        exclude_history: whether items the user has had (the target aside) are left out of the ranking: also those
            that a split by time passes over, which no model sees.
    """
    ranks = np.empty(len(users), dtype=np.int64)
    best = np.zeros((len(users), top), dtype=np.int32)
    for places, scores, target in _running(model, data, users, exclude_history, batch_users, device):
        if top:
            best[places] = best_items(scores, top)
        ranks[places] = _ranks(scores, target)
    return Ranking(ranks, best)


@torch.no_grad()
def ranks_with(
    model: Scorer,
    data: SplitData,
    users: np.ndarray,
    offsets: list[torch.Tensor],
    *,
    exclude_history: bool = True,
    batch_users: int = 512,
    device: str = "cpu",
) -> np.ndarray:
    """(len(offsets), users) int64: ranks as of `full_ranking`, each offset (n_items + 1,) added to all scores."""
    ranks = np.empty((len(offsets), len(users)), dtype=np.int64)
    added = [offset.to(device) for offset in offsets]
    for places, scores, target in _running(model, data, users, exclude_history, batch_users, device):
        for row, offset in zip(ranks, added, strict=True):
            row[places] = _ranks(scores + offset, target)
    return ranks


def _running(
    model: Scorer, data: SplitData, users: np.ndarray, exclude_history: bool, batch_users: int, device: str
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Places in `users`, scores (block, n_items + 1), -inf for what is not in the running, and targets (block, 1)."""
    history, had = data.test_history(), data.full_history()
    lengths = had.lengths()
    table, bias = model.item_table, model.item_bias
    block = max(1, min(batch_users, MOST_SCORES // len(table)))
    for places, states in state_blocks(model, history, users, block, device):
        scores = score_all(states, table, bias)
        target = torch.from_numpy(data.test[users[places]].astype(np.int64)).to(device)[:, None]
        if exclude_history:
            wanted = scores.gather(1, target)
            seen = left_padded(had, users[places], int(lengths[users[places]].max())).to(device)
            # The target is among them: put its score back.
            scores.scatter_(1, seen, -torch.inf).scatter_(1, target, wanted)
        yield places, scores, target


def _ranks(scores: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """(block,) int64 ranks of the targets; takes their scores out of `scores`."""
    wanted = scores.gather(1, target)[:, 0]
    return rank_of_target(wanted, scores.scatter_(1, target, -torch.inf)).cpu().numpy()


@torch.no_grad()
def sampled_ranks(
    model: Scorer,
    data: SplitData,
    users: np.ndarray,
    candidates: np.ndarray,
    *,
    batch_users: int = 512,
    device: str = "cpu",
) -> np.ndarray:
    """1-based ranks of the users' test items among their candidates (len(users), negatives): (users,) int64."""
    table, bias = model.item_table, model.item_bias
    width = candidates.shape[1] + 1
    # With many candidates of a small catalogue it is faster to score everything, as the full ranking does.
    everything = len(table) < LOOKUP_COST * width
    block = max(1, min(batch_users, MOST_SCORES // (len(table) if everything else width * table.shape[1])))
    ranks = np.empty(len(users), dtype=np.int64)
    for places, states in state_blocks(model, data.test_history(), users, block, device):
        targets = data.test[users[places]].astype(np.int64)[:, None]
        items = torch.from_numpy(np.concatenate([targets, candidates[places]], axis=1).astype(np.int64)).to(device)
        if everything:
            scores = score_all(states, table, bias).gather(1, items)
        else:
            scores = _looked_up(states, items, table, bias)
        ranks[places] = rank_of_target(scores[:, 0], scores[:, 1:]).cpu().numpy()
    return ranks
