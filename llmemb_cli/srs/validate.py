"""Ranks of the validation items among the whole catalogue, for early stopping."""

from __future__ import annotations

import numpy as np
import torch

from llmemb_cli.cross_entropy import ALIGNED
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.peers import ALONE, Peers
from llmemb_cli.ranking import rank_of_target
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import left_padded

# Users scored at once; on a CPU their scores stay in its cache. Of a huge catalogue fewer: MOST_SCORES (1 GiB) exist.
BLOCK = {"cpu": 128}
MOST = 512
MOST_SCORES = 1 << 28


def validation_users(data: SplitData, most: int, seed: int) -> np.ndarray:
    """Users with a validation item, in order of history length; at most `most` of them, drawn once, if not 0."""
    users = np.flatnonzero((data.valid > 0) & (data.train.lengths() > 0))
    if 0 < most < len(users):
        users = numpy_rng(seed, "validation-users").choice(users, most, replace=False)
    return users[np.argsort(data.train.lengths()[users], kind="stable")]


def users_at_once(device: str, scores: int) -> int:
    """How many users are scored together when each has `scores` scores."""
    return max(1, min(BLOCK.get(device, MOST), MOST_SCORES // scores))


@torch.no_grad()
def validation_ranks(
    model: Recommender, data: SplitData, users: np.ndarray, device: str = "cpu", peers: Peers = ALONE
) -> np.ndarray:
    """1-based rank of each user's validation item, the user's own training items left out.

    Args:
        users: (n,) int, as `validation_users` gives them.
        peers: the processes that share the users.

    Returns:
        (n,) int64 in the order of `users`, in every process.
    """
    model.train(False)
    mine = users[peers.rank :: peers.size]
    raw = model.embedding.table()
    table, bias = model.scored(raw), model.item_bias
    width = -(-len(table) // ALIGNED) * ALIGNED
    ranks, block = [], users_at_once(device, width)
    buffer = raw.new_empty(min(block, len(mine)), width)
    for start in range(0, len(mine), block):
        chosen = mine[start : start + block]
        states = model.encode(left_padded(data.train, chosen, model.max_length).to(device), raw)
        scores = torch.mm(states, table.T, out=buffer[: len(chosen), : len(table)])
        if bias is not None:
            scores += bias
        target = torch.from_numpy(data.valid[chosen].astype(np.int64)).to(device)[:, None]
        wanted = scores.gather(1, target)
        every = left_padded(data.train, chosen, int(data.train.lengths()[chosen].max()))
        scores.scatter_(1, every.to(device), -torch.inf).scatter_(1, target, -torch.inf)
        scores[:, 0] = -torch.inf
        ranks.append(rank_of_target(wanted[:, 0], scores))
    found = torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64, device=device)
    counts = peers.share(len(users))
    parts = peers.gather(found, counts).cpu().split(counts)
    whole = np.empty(len(users), dtype=np.int64)
    for rank, part in enumerate(parts):
        whole[rank :: peers.size] = part.numpy()
    return whole
