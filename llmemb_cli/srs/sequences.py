"""User sequences as batches: gathered from one flat array, cut to the longest, padded on the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from llmemb_cli.config.backbones import BACKBONES, BackboneName
from llmemb_cli.datasets.split import PAD, Ragged
from llmemb_cli.seeds import numpy_rng

# Positions of padding that are worth one more call of the backbone: on a GPU the many small kernels of a call take
# longer than a great deal of padding.
GROUP_SAVING, GPU_GROUP_SAVING = 256, 1 << 16


@dataclass(frozen=True)
class TrainingRows:
    """What is trained on: pieces of the users' histories, row r is `values[begin[r]:end[r]]`, oldest item first.

    Attributes:
        values: (total,) int32, the training items of all users.
        begin, end: (rows,) int64.
        users: (rows,) int64, whose history it is.
    """

    values: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    users: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


def training_rows(train: Ragged, backbone: BackboneName) -> TrainingRows:
    """The rows of a backbone: whole histories, or every beginning of them of two items at least.

    A history of one item has no next item to learn, but one to mask.
    """
    learns = BACKBONES[backbone].learns
    if learns != "last":
        users = np.flatnonzero(train.lengths() >= (1 if learns == "masked" else 2))
        return TrainingRows(train.values, train.offsets[users], train.offsets[users + 1], users)
    owners = np.repeat(np.arange(len(train)), train.lengths())
    end = 1 + np.arange(len(train.values))
    long = end - train.offsets[owners] >= 2
    return TrainingRows(train.values, train.offsets[owners[long]], end[long], owners[long])


def left_padded(rows: Ragged, chosen: np.ndarray, max_length: int) -> torch.Tensor:
    """`padded_rows` as a tensor."""
    return torch.from_numpy(padded_rows(rows, chosen, max_length))


def padded_rows(rows: Ragged, chosen: np.ndarray, max_length: int) -> np.ndarray:
    """The newest `max_length` items of the chosen rows.

    Args:
        rows: item sequences, oldest first.
        chosen: (batch,) int, row numbers.
        max_length: longest sequence.

    Returns:
        (batch, length) int64, 0 = padding on the left; length is that of the longest row, at least 1.
    """
    return padded_pieces(rows.values, rows.offsets[chosen], rows.offsets[chosen + 1], max_length)


def padded_pieces(values: np.ndarray, begin: np.ndarray, end: np.ndarray, max_length: int) -> np.ndarray:
    """`padded_rows` of the pieces `values[begin[r]:end[r]]`."""
    lengths = np.minimum(end - begin, max_length)
    width = max(int(lengths.max(initial=0)), 1)
    place = np.arange(width) - width + end[:, None]
    inside = np.arange(width) >= width - lengths[:, None]
    # Rows of padding alone would read before the array: point them at 0, the mask removes them.
    found = values[np.where(inside, place, 0)] if len(values) else np.zeros_like(place)
    return np.where(inside, found, PAD).astype(np.int64)


def epoch_batches(rows: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch, drawn at random.

    Batches are not made of rows of like length: then some steps would see long histories alone, and a mean over a
    batch's targets would weigh targets of short histories more. `length_groups` saves the padding instead. The
    order depends on seed and epoch alone, so an interrupted run meets the same batches.
    """
    order = numpy_rng(seed, "batches", epoch).permutation(rows)
    return [order[start : start + batch_size] for start in range(0, rows, batch_size)]


def group_saving(device: str) -> int:
    """Positions of padding that are worth one more call of a backbone on this device."""
    return GROUP_SAVING if device == "cpu" else GPU_GROUP_SAVING


def length_groups(lengths: np.ndarray, saving: int = GROUP_SAVING) -> list[np.ndarray]:
    """Split the rows of a batch into groups of like length; each passes the backbone cut to its own longest row.

    A group ends where the rows that follow are at most half as long and cutting them saves `saving` positions.

    Args:
        lengths: (batch,) int, length of every row.

    Returns:
        Row numbers of each group, together every row once; longest group first.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    groups, start = [], 0
    while start < len(order):
        width = int(ordered[start])
        end = start + int(np.searchsorted(-ordered[start:], -(width // 2), side="left"))
        rest = len(order) - end
        if rest and (width - int(ordered[end])) * rest < saving:
            end = len(order)
        end = max(end, start + 1)
        groups.append(order[start:end])
        start = end
    return groups
