"""What a step minimises: the backbone's own loss on a batch, plus what the method adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import embedding

from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.cross_entropy import cross_entropy
from llmemb_cli.datasets.split import Ragged
from llmemb_cli.peers import Peers
from llmemb_cli.srs import losses
from llmemb_cli.srs.batch import Batch
from llmemb_cli.srs.recommender import Recommender


@dataclass(frozen=True)
class Step:
    """One step of training, as the loss that a method adds sees it.

    Attributes:
        batch: the batch.
        embedded: (m, d) float, the embeddings of `batch.items`.
        epoch, number, steps: which epoch, which step of it, of how many.
        rng: stream of this step; the same in all processes.
        peers: the processes that share the batch.
    """

    batch: Batch
    embedded: torch.Tensor
    epoch: int
    number: int
    steps: int
    rng: np.random.Generator
    peers: Peers


class Extra(Protocol):
    """What a method adds to training. Its losses are shares: their sum over processes is the loss of the batch.

    Attributes:
        recordable: whether its loss is the same work for every batch of a shape, and reads nothing of a step but
            `batch`, `embedded` and `peers`.
    """

    @property
    def recordable(self) -> bool: ...

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        """Called before the first step of an epoch."""

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        """This process's share of the added loss."""
        ...


def loss_name(settings: RatSettings) -> str:
    """The loss in force: the backbone's own unless one is named."""
    return BACKBONES[settings.backbone].loss if settings.loss == "auto" else settings.loss


def popularity_offset(train: Ragged, n_items: int, weight: float, share: float = 1.0) -> torch.Tensor | None:
    """What logit adjustment adds to the scores of items in training (Menon et al., ICLR 2021, Eq. 10).

    The logarithm of an item's share is learned by the offset and not by the model, whose own scores then say how much
    likelier an item is than its popularity lets one expect (wholly so at a weight of 1).

    Args:
        train: training items of all users.
        weight: tau.
        share: of the items, least popular first; counts above the last of these count as that one. Whether an item
            is rare is then taken out, and not how popular a popular one is.

    Returns:
        (n_items + 1,) float: tau log((count + 1) / mean of (count + 1)); None for a weight of 0. Centred, because the
        height of all scores counts for losses that are no softmax.
    """
    if not weight:
        return None
    counts = 1.0 + np.bincount(train.values, minlength=n_items + 1)
    counts = np.minimum(counts, np.sort(counts[1:])[max(round(share * n_items), 1) - 1])
    return torch.from_numpy(weight * np.log(counts / counts[1:].mean())).float()


def batch_loss(
    model: Recommender, settings: RatSettings, batch: Batch, offset: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's share of the mean loss over the targets of a batch.

    The item embeddings are made once for every distinct item that the loss needs, not once a position. Rows are taken
    by `embedding`, never by an index: the backward pass of an index adds up in any order where there are threads.

    Args:
        offset: (n_items + 1,) float, added to the scores of items, or None.

    Returns:
        the loss, and (m, d) the embeddings of `batch.items`.
    """
    bias = _sum(model.bias, offset)
    if loss_name(settings) == "ce":
        table = model.embedding.items()
        if not batch.groups:
            return _nothing(model), embedding(batch.items - 1, table)
        states = model.scoring(_states(model, batch, table, None))
        offsets = None if bias is None else bias[1:]
        loss = cross_entropy(states, _targets(batch) - 1, model.scored(table), offsets, real=batch.real)
        return loss / batch.targets, embedding(batch.items - 1, table)
    embedded = model.embedding.known(batch.items)
    if not batch.groups:
        return _nothing(model), embedded
    states = model.scoring(_states(model, batch, embedded, batch.items))
    targets, scored = _targets(batch), model.scored(embedded)
    positive = (states * embedding(_rows_of(batch.items, targets), scored)).sum(dim=1)
    negatives = batch.negatives if batch.shared is None else batch.shared
    assert negatives is not None
    negative_rows = embedding(_rows_of(batch.items, negatives), scored)
    if batch.shared is None:
        negative = torch.bmm(negative_rows, states[:, :, None])[:, :, 0]
    else:
        negative = (states @ negative_rows.T).masked_fill(targets[:, None] == batch.shared, -torch.inf)
    if bias is not None:
        positive = positive + bias.index_select(0, targets)
        negative = negative + bias.index_select(0, negatives.flatten()).view_as(negatives)
    name = loss_name(settings)
    if name == "gbce":
        loss = losses.gbce(positive, negative, losses.gbce_beta(settings.negatives, model.n_items))
    elif name == "sce":
        loss = losses.sce(positive, negative, settings.negative_weight or model.n_items / negative.shape[1])
    else:
        loss = losses.SAMPLED[name](positive, negative)
    loss = loss if batch.real is None else loss * batch.real
    return loss.sum() / batch.targets, embedded


def _rows_of(items: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Where each of `wanted` stands among `items`, as int32: a GPU sorts these when it adds up their gradients."""
    return torch.searchsorted(items, wanted, out_int32=True)


def _nothing(model: Recommender) -> torch.Tensor:
    """The share of a process without rows, which must go through the backward pass as all others do."""
    return next(p for p in model.parameters() if p.requires_grad).flatten()[:0].sum()


def _sum(bias: torch.Tensor | None, offset: torch.Tensor | None) -> torch.Tensor | None:
    return offset if bias is None else bias if offset is None else bias + offset


def _targets(batch: Batch) -> torch.Tensor:
    """(targets,) int64, in the order of the groups."""
    return _joined([group.targets for group in batch.groups])


def _states(model: Recommender, batch: Batch, table: torch.Tensor, items: torch.Tensor | None) -> torch.Tensor:
    """(targets, d): states at the positions of the targets.

    Args:
        table: embeddings, of items 1..N in order, or, with `items` given, of those.
    """
    found = []
    for group in batch.groups:
        # Padding and [MASK] may read any row: the backbone masks the one and replaces the other.
        known = group.inputs.clamp(1, model.n_items)
        place = known - 1 if items is None else _rows_of(items, known).clamp(max=len(items) - 1)
        states = model.states(group.inputs, embedding(place, table))
        found.append(states.flatten(0, 1).index_select(0, group.places))
    return _joined(found)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """The parts below each other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
