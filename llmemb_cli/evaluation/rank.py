"""Where each test target ranks: among the whole catalogue, or among sampled candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from llmemb_cli.datasets.split import Ragged, SplitData
from llmemb_cli.ranking import rank_of_target
from llmemb_cli.srs.sequences import left_padded


class Scorer(Protocol):
    """What evaluation needs of a recommender."""

    max_length: int

    @property
    def item_table(self) -> torch.Tensor: ...

    @property
    def item_bias(self) -> torch.Tensor | None: ...

    def encode(self, sequences: torch.Tensor) -> torch.Tensor: ...


def _blocks(
    model: Scorer, history: Ragged, users: np.ndarray, batch_users: int, device: str
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Places in `users` and states (block, d); users of similar history length stand together."""
    order = np.argsort(history.lengths()[users], kind="stable")
    for start in range(0, len(order), batch_users):
        places = order[start : start + batch_users]
        yield places, model.encode(left_padded(history, users[places], model.max_length).to(device))


@torch.no_grad()
def full_ranks(
    model: Scorer,
    data: SplitData,
    users: np.ndarray,
    *,
    exclude_history: bool = True,
    batch_users: int = 512,
    device: str = "cpu",
) -> np.ndarray:
    """1-based ranks of the users' test items among all items, ties against the target.

    Args:
        exclude_history: whether items the user has had (the target aside) are left out of the ranking.

    Returns:
        (len(users),) int64.
    """
    history = data.test_history()
    table, bias = model.item_table, model.item_bias
    ranks = np.empty(len(users), dtype=np.int64)
    for places, states in _blocks(model, history, users, batch_users, device):
        scores = states @ table.T
        if bias is not None:
            scores = scores + bias
        target = torch.from_numpy(data.test[users[places]].astype(np.int64)).to(device)[:, None]
        wanted = scores.gather(1, target)[:, 0]
        if exclude_history:
            longest = int(history.lengths()[users[places]].max())
            scores.scatter_(1, left_padded(history, users[places], longest).to(device), -torch.inf)
        scores.scatter_(1, target, -torch.inf)
        scores[:, 0] = -torch.inf
        ranks[places] = rank_of_target(wanted, scores).cpu().numpy()
    return ranks


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
    """1-based ranks of the users' test items among their candidates (len(users), negatives)."""
    table, bias = model.item_table, model.item_bias
    ranks = np.empty(len(users), dtype=np.int64)
    for places, states in _blocks(model, data.test_history(), users, batch_users, device):
        targets = data.test[users[places]].astype(np.int64)[:, None]
        items = torch.from_numpy(np.concatenate([targets, candidates[places]], axis=1).astype(np.int64)).to(device)
        # A product and a sum, not a matrix product: that rounds by position, and equal items would not tie.
        scores = (states[:, None, :] * table[items]).sum(dim=2)
        if bias is not None:
            scores = scores + bias[items]
        ranks[places] = rank_of_target(scores[:, 0], scores[:, 1:]).cpu().numpy()
    return ranks
