"""Ranks of the validation items among the whole catalogue, for early stopping."""

from __future__ import annotations

import numpy as np
import torch

from llmemb_cli.datasets.split import SplitData
from llmemb_cli.ranking import rank_of_target
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import left_padded

BLOCK = 512


@torch.no_grad()
def validation_ranks(model: Recommender, data: SplitData, device: str) -> np.ndarray:
    """1-based rank of every user's validation item, the user's own training items left out.

    Returns:
        (users with a validation item,) int64, users in order of history length.
    """
    model.train(False)
    users = np.flatnonzero((data.valid > 0) & (data.train.lengths() > 0))
    users = users[np.argsort(data.train.lengths()[users], kind="stable")]
    table, bias = model.item_table, model.item_bias
    ranks = []
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        states = model.encode(left_padded(data.train, block, model.max_length).to(device))
        scores = states @ table.T if bias is None else states @ table.T + bias
        target = torch.from_numpy(data.valid[block].astype(np.int64)).to(device)[:, None]
        wanted = scores.gather(1, target)[:, 0]
        every = left_padded(data.train, block, int(data.train.lengths()[block].max())).to(device)
        scores = scores.scatter(1, every, -torch.inf).scatter(1, target, -torch.inf)
        scores[:, 0] = -torch.inf
        ranks.append(rank_of_target(wanted, scores).cpu().numpy())
    return np.concatenate(ranks) if ranks else np.empty(0, dtype=np.int64)
