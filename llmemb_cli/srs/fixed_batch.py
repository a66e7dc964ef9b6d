"""Training batches that a device makes by itself, in shapes that return: what a recorded step works on.

A batch of `batch.py` has as many targets and distinct items as it happens to have, and is made by the CPU. Here both
are filled up to a round number, and what fills up is marked, so that every batch of a shape is the same work and
nothing has to be asked of the device. What is random comes from the device's generator, so that batches differ from
those of `batch.py` in what is drawn, not in how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.srs.batch import LAST_ONLY, Batch, Group, window
from llmemb_cli.srs.negatives import NegativeSampler, OwnItems
from llmemb_cli.srs.sequences import TrainingRows


class Shape(NamedTuple):
    """Of a batch: the length of its inputs, and the most items that its rows have together."""

    length: int
    items: int


@dataclass(frozen=True)
class DeviceRows:
    """`TrainingRows` on a device, with one more row that is empty: it fills up the last batch of an epoch.

    Attributes:
        values: (before + total,) int64: zeros, so that a row can be read from `before` places before its end on, then
            all values.
        rows: (rows + 1, 3) int64: where the part that is read of a row begins and ends in `values`, and its user.
        own: what users have had; None where the loss draws no negatives for single users.
        count: (most,) int64, 0, 1, 2, ...: as many as anything here is counted.
    """

    values: torch.Tensor
    rows: torch.Tensor
    own: OwnItems | None
    count: torch.Tensor


def rows_on_device(
    rows: TrainingRows,
    sampler: NegativeSampler | None,
    settings: RatSettings,
    batch: int,
    n_items: int,
    device: str,
) -> DeviceRows:
    """The rows, and what their users have had, on `device`.

    Args:
        batch: most rows of a batch.
    """
    before = window(settings)
    values = np.concatenate([np.zeros(before, dtype=np.int64), rows.values])
    parts = np.stack([rows.end - read_lengths(rows, settings) + before, rows.end + before, rows.users], axis=1)
    parts = np.concatenate([parts, np.full((1, 3), before)])
    parts[-1, 2] = 0
    most = max(n_items, rounded(batch * before) + batch) + 1
    own = None if sampler is None else sampler.own_items(device)
    to_device = (torch.from_numpy(part).to(device) for part in (values, parts.astype(np.int64), np.arange(most)))
    there, table, count = to_device
    return DeviceRows(there, table, own, count)


def read_lengths(rows: TrainingRows, settings: RatSettings) -> np.ndarray:
    """(rows,) int64: how many items of each row a batch reads."""
    return np.minimum(rows.end - rows.begin, window(settings))


def shape_of(lengths: np.ndarray, settings: RatSettings) -> Shape:
    """The shape of a batch of rows of which `lengths` (batch,) items are read."""
    longest = int(lengths.max()) - (window(settings) - settings.max_length)
    return Shape(min(rounded(max(longest, 1)), settings.max_length), rounded(int(lengths.sum())))


def rounded(count: int) -> int:
    """The next of the numbers 1 to 8, 10, 12, 14, 16, 20, 24, ...: at most a quarter more."""
    step = 1 << max((count - 1).bit_length() - 3, 0)
    return -(-count // step) * step


def fixed_batch(rows: DeviceRows, chosen: torch.Tensor, shape: Shape, settings: RatSettings, n_items: int) -> Batch:
    """Gather, mask and draw negatives for the rows `chosen`, as `make_batch` does.

    Args:
        chosen: (batch,) int64, numbers of rows, on the device.
        shape: as `shape_of` gives it for them.
    """
    learns, width = BACKBONES[settings.backbone].learns, shape.length
    begin, end, users = rows.rows.index_select(0, chosen).unbind(1)
    sequences = _sequences(rows, begin, end, width + (0 if learns == "masked" else 1))
    if learns == "masked":
        inputs, targets = _masked_pairs(sequences, n_items + 1, settings.mask_ratio)
        wanted = targets > 0
    else:
        inputs, targets = sequences[:, :-1], sequences[:, 1:]
        wanted = inputs > 0
        if learns == "last":
            wanted = wanted & (rows.count[:width] == width - 1)
    places, real, among = _places(wanted, _most_targets(shape, len(chosen), settings), rows.count)
    found, most = [sequences.flatten()], shape.items
    negatives = shared = None
    if rows.own is not None:
        owners = users.index_select(0, places // width)
        negatives = rows.own.draw(owners, settings.negatives) * real[:, None]
        found.append(negatives.flatten())
        most += negatives.numel()
    if settings.loss == "sce":
        count = min(settings.negatives, n_items)
        shared = 1 + torch.rand(n_items, device=chosen.device).topk(count, sorted=False).indices
        found.append(shared)
        most += count
    items, distinct = distinct_items(found, n_items, min(most, n_items), rows.count)
    return Batch(
        users=np.empty(0, dtype=np.int64),
        all_users=np.empty(0, dtype=np.int64),
        # What fills up reads the last place, which need not have a target.
        groups=[Group(inputs, targets.flatten().index_select(0, places).clamp(min=1), places)],
        negatives=negatives,
        shared=shared,
        items=items,
        targets=among,
        rows=len(chosen),
        real=real,
        distinct=distinct,
    )


def _sequences(rows: DeviceRows, begin: torch.Tensor, end: torch.Tensor, width: int) -> torch.Tensor:
    """(batch, width) int64: what is read of rows, 0 = padding on the left."""
    place = rows.count[:width] + (end - width)[:, None]
    return rows.values[place] * (place >= begin[:, None])


def _masked_pairs(sequences: torch.Tensor, mask_item: int, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """As `masked_pairs` of `batch.py`; rows may be empty."""
    real = sequences > 0
    counts = (ratio * real.sum(dim=1, keepdim=True)).round().clamp(min=1)
    draw = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
    masked = (draw.argsort(dim=1).argsort(dim=1) < counts) & real
    last = torch.arange(real.shape[1], device=real.device) == real.shape[1] - 1
    last_only = torch.rand(len(real), 1, device=real.device) < LAST_ONLY
    masked = torch.where(last_only, last & real, masked)
    return sequences.masked_fill(masked, mask_item), sequences * masked


def _most_targets(shape: Shape, rows: int, settings: RatSettings) -> int:
    """No batch of the shape has more targets."""
    learns = BACKBONES[settings.backbone].learns
    if learns == "last":
        return rows
    if learns == "masked":
        # Of every row at least one item is masked, and numbers are rounded up.
        return min(shape.items, math.ceil(settings.mask_ratio * shape.items) + rows)
    return shape.items


def _places(wanted: torch.Tensor, most: int, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where `wanted` is true, of its flattened places.

    Args:
        most: at least as many as there are.
        count: (more than most,) int64, 0, 1, 2, ...

    Returns:
        (most,) int64, in order, filled up with the last place of all; (most,) bool which of them there are; and their
        number, a scalar.
    """
    up_to = wanted.flatten().cumsum(0)
    nth = count[1 : most + 1]
    return torch.searchsorted(up_to, nth).clamp(max=len(up_to) - 1), nth <= up_to[-1], up_to[-1]


def distinct_items(
    found: list[torch.Tensor], n_items: int, most: int, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The items among `found`, each once and in order, filled up with item `n_items`.

    Args:
        found: (k,) int64 each, of 0..n_items; 0 is none.
        most: at least as many as are found.
        count: (more than most,) int64, 0, 1, 2, ...

    Returns:
        (most,) int64, and (most,) bool which of them are found.
    """
    there = torch.zeros(n_items + 1, dtype=torch.bool, device=count.device)
    for items in found:
        there.scatter_(0, items, True)
    places, distinct, _ = _places(there[1:], most, count)
    return places + 1, distinct
