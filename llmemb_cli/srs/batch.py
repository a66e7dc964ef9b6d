"""A training batch: inputs, targets and negatives of some users, in groups of like length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.peers import ALONE, Peers
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.sequences import TrainingRows, group_saving, length_groups, padded_pieces

# One in eleven sequences masks its last item alone, as BERT4Rec's ten random copies and one last-item copy.
LAST_ONLY = 1 / 11
# Sorting a number takes as long as looking at this many marks.
MARKS = 50


@dataclass(frozen=True)
class Group:
    """Rows of like length.

    Attributes:
        inputs: (rows, length) int64.
        targets: (targets,) int64, the items to predict.
        places: (targets,) int64, at which of the flattened positions. They are known here, so that no step has to
            wait for a device to find them.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        users: (rows,) int64, whose sequences this process works on.
        all_users: whose sequences all processes work on.
        groups: their sequences; none where the batch has fewer rows than there are processes.
        negatives: (targets, K) int64 for the targets in the order of the groups; None where the loss needs none, or
            there are no groups.
        shared: (K,) int64, distinct negatives of all targets alike, or None.
        items: (m,) int64, the distinct items of the whole batch, in order, also those of other processes.
        targets: number of targets of the whole batch, an int or, where a device alone knows it, a scalar tensor; a
            loss is divided by it, so that the sum over processes is the mean over the batch.
        rows: number of sequences of the whole batch.
        real: (targets,) bool, which of the targets there are and which fill up the shape; None: all are.
        distinct: (m,) bool, which of `items` there are and which fill up the shape, with the last one; None: all are.
    """

    users: np.ndarray
    all_users: np.ndarray
    groups: list[Group]
    negatives: torch.Tensor | None
    shared: torch.Tensor | None
    items: torch.Tensor
    targets: int | torch.Tensor
    rows: int
    real: torch.Tensor | None = None
    distinct: torch.Tensor | None = None


def next_item_pairs(sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of SASRec and GRU4Rec: position t reads items up to t and predicts item t + 1.

    Args:
        sequences: (batch, length + 1) int64, left-padded.

    Returns:
        inputs and targets, each (batch, length) int64; the target is 0 where there is nothing to learn.
    """
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    return inputs, targets * (inputs > 0)


def last_pairs(sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `next_item_pairs`, but the last item alone is predicted."""
    targets = np.zeros_like(sequences[:, 1:])
    targets[:, -1] = sequences[:, -1]
    return sequences[:, :-1], targets


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
    """How many of a row's newest items a batch reads: one more than the longest input where targets are the next."""
    return settings.max_length + (0 if BACKBONES[settings.backbone].learns == "masked" else 1)


def make_batch(
    rows: TrainingRows,
    chosen: np.ndarray,
    settings: RatSettings,
    n_items: int,
    sampler: NegativeSampler | None,
    rng: np.random.Generator,
    device: str = "cpu",
    peers: Peers = ALONE,
) -> Batch:
    """Gather, mask and draw negatives for the rows `chosen`.

    Everything random is drawn for the whole batch and then shared out, so that the batch does not depend on the
    number of processes. Negatives are drawn for targets alone, not for padding.

    Args:
        chosen: (batch,) int, numbers of the rows of the whole batch.
        n_items: number of items; `n_items + 1` is [MASK].
        sampler: draws negatives for every target; None where the loss needs none, or the same for all.
        rng: stream of this step.
        peers: the processes that share the rows; those of this one become groups.
    """
    users = rows.users[chosen]
    sequences = padded_pieces(rows.values, rows.begin[chosen], rows.end[chosen], window(settings))
    learns = BACKBONES[settings.backbone].learns
    if learns == "masked":
        inputs, targets = masked_pairs(sequences, n_items + 1, settings.mask_ratio, rng)
    else:
        inputs, targets = last_pairs(sequences) if learns == "last" else next_item_pairs(sequences)
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
    lengths = (inputs > 0).sum(axis=1)
    for part in length_groups(lengths[mine], group_saving(device)):
        some = mine[part]
        length = max(int(lengths[some].max()), 1)
        here = wanted[some, -length:]
        tensors = (inputs[some, -length:], targets[some, -length:][here], np.flatnonzero(here))
        groups.append(Group(*(_to(values, device) for values in tensors)))
        if negatives is not None:
            kept.append(negatives[some, -length:][here])
    return Batch(
        users[mine],
        users,
        groups,
        _to(np.concatenate(kept), device) if kept else None,
        None if shared is None else _to(shared, device),
        _to(distinct_items(np.concatenate(parts), n_items), device),
        int(wanted.sum()),
        len(users),
    )


def distinct_items(found: np.ndarray, n_items: int) -> np.ndarray:
    """(m,) int64: the items among `found` (k,) int64 of 0..n_items, each once, in order; 0 is none."""
    if n_items > MARKS * len(found):
        items = np.unique(found)
        return items[items > 0]
    there = np.zeros(n_items + 1, dtype=bool)
    there[found] = True
    there[0] = False
    return np.flatnonzero(there)


def _to(values: np.ndarray, device: str) -> torch.Tensor:
    made = torch.from_numpy(np.ascontiguousarray(values))
    # From pinned memory the copy to a GPU does not hold up the thread that asks for it.
    return made.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else made.to(device)
