"""User sequences as batches: gathered from one flat array, cut to the longest of the batch, padded on the left."""

from __future__ import annotations

import numpy as np
import torch

from llmemb_cli.datasets.split import PAD, Ragged
from llmemb_cli.seeds import numpy_rng


def left_padded(rows: Ragged, chosen: np.ndarray, max_length: int) -> torch.Tensor:
    """The newest `max_length` items of the chosen rows.

    Args:
        rows: item sequences, oldest first.
        chosen: (batch,) int, row numbers.
        max_length: longest sequence.

    Returns:
        (batch, length) int64, 0 = padding on the left; length is that of the longest row, at least 1.
    """
    ends = rows.offsets[chosen + 1]
    lengths = np.minimum(ends - rows.offsets[chosen], max_length)
    width = max(int(lengths.max(initial=0)), 1)
    place = np.arange(width) - width + ends[:, None]
    inside = np.arange(width) >= width - lengths[:, None]
    # Rows of padding alone would read before the array: point them at 0, the mask removes them.
    values = rows.values[np.where(inside, place, 0)] if len(rows.values) else np.zeros_like(place)
    return torch.from_numpy(np.where(inside, values, PAD).astype(np.int64))


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch: random, but rows of a batch have similar length.

    Rows are shuffled, sorted by length within pools of 16 batches, and the batches are shuffled again. The
    order depends on seed and epoch alone, so an interrupted run meets the same batches.
    """
    rng = numpy_rng(seed, "batches", epoch)
    order = rng.permutation(len(lengths))
    pool = batch_size * 16
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
