"""A training batch: inputs, targets and negatives of some users, in groups of like length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.peers import ALONE, Peers
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.sequences import length_groups, padded_rows

# One in eleven sequences masks its last item alone, as BERT4Rec's ten random copies and one last-item copy.
LAST_ONLY = 1 / 11


@dataclass(frozen=True)
class Group:
    """Rows of like length: inputs and targets (rows, length) int64; a target is 0 where nothing is predicted."""

    inputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        users: (rows,) int64, the rows of the training data this process works on.
        groups: their sequences.
        negatives: (targets, K) int64 for the targets in the order of the groups; None where the loss needs none.
        shared: (K,) int64, distinct negatives of all targets alike, or None.
        items: (m,) int64, the distinct items of the whole batch, in order, also those of other processes.
        targets: number of targets of the whole batch; a loss is divided by it, so that the sum over processes is the
            mean over the batch.
        rows: number of users of the whole batch.
    """

    users: np.ndarray
    groups: list[Group]
    negatives: torch.Tensor | None
    shared: torch.Tensor | None
    items: torch.Tensor
    targets: int
    rows: int


def next_item_pairs(sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of SASRec and GRU4Rec: position t reads items up to t and predicts item t + 1.

    Args:
        sequences: (batch, length + 1) int64, left-padded.

    Returns:
        inputs and targets, each (batch, length) int64; the target is 0 where there is nothing to learn.
    """
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    return inputs, targets * (inputs > 0)


def masked_pairs(
    sequences: np.ndarray, mask_item: int, ratio: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of BERT4Rec: max(1, round(ratio * length)) items of each sequence are masked.

    Args:
        sequences: (batch, length) int64, left-padded.
        mask_item: the item number of [MASK].
        ratio: share of items masked.
        rng: the stream to draw from.

    Returns:
        inputs with [MASK] and targets, each (batch, length) int64; the target is 0 where nothing is masked.
    """
    real = sequences > 0
    lengths = real.sum(axis=1, keepdims=True)
    draw = np.where(real, rng.random(real.shape), 2.0)
    place = np.argsort(np.argsort(draw, axis=1), axis=1)
    masked = (place < np.maximum(1, np.round(ratio * lengths))) & real
    last_only = rng.random(len(real)) < LAST_ONLY
    masked[last_only] = False
    masked[last_only, -1] = True
    return np.where(masked, mask_item, sequences), sequences * masked


def window(settings: RatSettings) -> int:
    """How many of a user's newest items a batch reads: one more than the longest input where targets are the next."""
    return settings.max_length + (0 if settings.backbone == "bert4rec" else 1)


def make_batch(
    train: Ragged,
    users: np.ndarray,
    settings: RatSettings,
    n_items: int,
    sampler: NegativeSampler | None,
    rng: np.random.Generator,
    device: str = "cpu",
    peers: Peers = ALONE,
) -> Batch:
    """Gather, mask and draw negatives for `users`.

    Everything random is drawn for the whole batch and then shared out, so that the batch does not depend on the
    number of processes. Negatives are drawn for targets alone, not for padding.

    Args:
        train: the training items of all users.
        users: (rows,) int, the users of the whole batch.
        n_items: number of items; `n_items + 1` is [MASK].
        sampler: draws negatives for every target; None where the loss needs none, or the same for all.
        rng: stream of this step.
        peers: the processes that share the rows; those of this one become groups.
    """
    sequences = padded_rows(train, users, window(settings))
    if settings.backbone == "bert4rec":
        inputs, targets = masked_pairs(sequences, n_items + 1, settings.mask_ratio, rng)
    else:
        inputs, targets = next_item_pairs(sequences)
    wanted = targets > 0
    parts = [sequences.ravel()]
    negatives = None
    if sampler is not None:
        owners = np.broadcast_to(users[:, None], targets.shape)[wanted]
        drawn = sampler.draw(owners, settings.negatives, rng)
        parts.append(drawn.ravel())
        negatives = np.zeros((*targets.shape, settings.negatives), dtype=np.int64)
        negatives[wanted] = drawn
    shared = None
    if settings.loss == "sce":
        shared = 1 + rng.choice(n_items, min(settings.negatives, n_items), replace=False)
        parts.append(shared)
    mine = np.arange(peers.rank, len(users), peers.size)
    groups, kept = [], []
    for rows in length_groups((inputs[mine] > 0).sum(axis=1)):
        chosen = mine[rows]
        length = max(int((inputs[chosen] > 0).sum(axis=1).max()), 1)
        groups.append(Group(_to(inputs[chosen, -length:], device), _to(targets[chosen, -length:], device)))
        if negatives is not None:
            kept.append(negatives[chosen, -length:][wanted[chosen, -length:]])
    items = np.unique(np.concatenate(parts))
    return Batch(
        users[mine],
        groups,
        _to(np.concatenate(kept), device) if kept else None,
        None if shared is None else _to(shared, device),
        _to(items[items > 0], device),
        int(wanted.sum()),
        len(users),
    )


def _to(values: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
