"""What a step minimises: the backbone's own loss on a batch of sequences, and the alignment of LLM embeddings."""

from __future__ import annotations

import numpy as np
import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.srs import losses
from llmemb_cli.srs.align import align_loss
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.recommender import Recommender

# One in eleven sequences masks its last item alone, as BERT4Rec's ten random copies and one last-item copy.
LAST_ONLY = 1 / 11


def loss_name(settings: RatSettings) -> str:
    """The loss in force: the backbone's own unless one is named."""
    if settings.loss != "auto":
        return settings.loss
    return "ce" if settings.backbone == "bert4rec" else "bce"


def next_item_pairs(sequences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of SASRec and GRU4Rec: position t reads items up to t and predicts item t + 1.

    Args:
        sequences: (batch, length + 1) int64, left-padded.

    Returns:
        inputs and targets, each (batch, length) int64; the target is 0 where there is nothing to learn.
    """
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    return inputs, targets * (inputs > 0)


def masked_pairs(
    sequences: torch.Tensor, mask_item: int, ratio: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of BERT4Rec: max(1, round(ratio * length)) items of each sequence are masked.

    Args:
        sequences: (batch, length) int64, left-padded.
        mask_item: the item number of [MASK].
        ratio: share of items masked.
        rng: the stream to draw from.

    Returns:
        inputs with [MASK] and targets, each (batch, length) int64; the target is 0 where nothing is masked.
    """
    real = (sequences > 0).cpu().numpy()
    lengths = real.sum(axis=1, keepdims=True)
    draw = np.where(real, rng.random(real.shape), 2.0)
    place = np.argsort(np.argsort(draw, axis=1), axis=1)
    masked = (place < np.maximum(1, np.round(ratio * lengths))) & real
    last_only = rng.random(len(real)) < LAST_ONLY
    masked[last_only] = False
    masked[last_only, -1] = True
    chosen = torch.from_numpy(masked).to(sequences.device)
    return sequences.masked_fill(chosen, mask_item), sequences * chosen


def batch_loss(
    model: Recommender,
    settings: RatSettings,
    users: np.ndarray,
    sequences: torch.Tensor,
    sampler: NegativeSampler,
    rng: np.random.Generator,
    collaborative: torch.Tensor | None,
) -> torch.Tensor:
    """The loss of one batch.

    Args:
        model: the recommender.
        settings: of `[rat]`.
        users: (batch,) int, the rows the sequences belong to, for their negatives.
        sequences: (batch, length) int64, training items, left-padded.
        sampler: draws negatives.
        rng: stream of this step.
        collaborative: (n_items + 1, d) float to align to, or None.
    """
    if model.kind == "bert4rec":
        inputs, targets = masked_pairs(sequences, model.mask_item, settings.mask_ratio, rng)
    else:
        inputs, targets = next_item_pairs(sequences)
    wanted = targets > 0
    if loss_name(settings) == "ce":
        table = model.item_table
        known = inputs.clamp(max=model.n_items)
        states = model.states(inputs, torch.nn.functional.embedding(known, table))[wanted]
        loss = losses.cross_entropy(states, targets[wanted], table, model.item_bias)
        present = torch.unique(sequences)
        adapted = table[present]
    else:
        negatives = sampler.draw(users, (targets.shape[1], settings.negatives), rng).to(sequences.device)
        every = torch.cat([inputs.clamp(max=model.n_items).flatten(), targets.flatten(), negatives.flatten()])
        present, place = torch.unique(every, return_inverse=True)
        adapted = model.embedding.rows(present)
        count = inputs.numel()
        states = model.states(inputs, adapted[place[:count].view(inputs.shape)])[wanted]
        targets_at, negatives_at = place[count : 2 * count].view(targets.shape), place[2 * count :]
        loss = _sampled_loss(model, settings, states, wanted, adapted, present, targets_at, negatives_at)
    if collaborative is not None:
        keep = present > 0
        loss = loss + settings.alpha * align_loss(
            settings.align_loss, adapted[keep], collaborative[present[keep]], settings.gamma
        )
    return loss


def _sampled_loss(
    model: Recommender,
    settings: RatSettings,
    states: torch.Tensor,
    wanted: torch.Tensor,
    adapted: torch.Tensor,
    present: torch.Tensor,
    targets_at: torch.Tensor,
    negatives_at: torch.Tensor,
) -> torch.Tensor:
    """Losses with sampled negatives; `*_at` are places in `adapted` (distinct items of the batch)."""
    positive_at = targets_at[wanted]
    negative_at = negatives_at.view(*targets_at.shape, settings.negatives)[wanted]
    positive = (states * adapted[positive_at]).sum(dim=1)
    negative = torch.einsum("nd,nkd->nk", states, adapted[negative_at])
    if model.bias is not None:
        positive = positive + model.bias[present[positive_at]]
        negative = negative + model.bias[present[negative_at]]
    name = loss_name(settings)
    if name == "gbce":
        return losses.gbce(positive, negative, losses.gbce_beta(settings.negatives, model.n_items))
    return {"bce": losses.bce, "bpr": losses.bpr, "sampled-softmax": losses.sampled_softmax}[name](positive, negative)
