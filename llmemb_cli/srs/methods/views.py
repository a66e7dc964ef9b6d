"""CL4SRec (Xie et al., ICDE 2022): two altered views of a history should lead to the same state."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import PAD, Ragged
from llmemb_cli.peers import Peers
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.sequences import padded_rows

# Shares of a history that are kept, masked and reordered, as in the authors' experiments [one of those tried].
CROP, MASK, REORDER = 0.6, 0.3, 0.6


class Views:
    """The contrast of two views of each user's history with those of all other users of the batch.

    Each view is cropped, masked or reordered, drawn at random [choice: both views may be altered in the same way].
    Scores are products of states, without a temperature, as in the paper.
    """

    recordable = False  # the CPU makes sequences of its own for every step

    def __init__(self, settings: RatSettings, train: Ragged, device: str) -> None:
        self.settings, self.train, self.device = settings, train, device

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        return None

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        """This process's share. Views are drawn for the whole batch, so that they do not depend on the processes."""
        sequences = padded_rows(self.train, np.unique(step.batch.all_users), model.max_length)
        views = [altered(sequences, model.mask_item, step.rng)[step.peers.rank :: step.peers.size] for _ in range(2)]
        counts = step.peers.share(len(sequences))
        states = [_with_others(model.last_states_in_groups(view, self.device), counts, step.peers) for view in views]
        loss = view_contrast(*states)
        # Every process has the whole loss, and the gradient of its own states: their sum is that of all.
        shared = loss - loss.detach() * (1 - 1 / step.peers.size)
        return self.settings.contrast_weight * shared


def view_contrast(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean of -log exp(x . y) / (exp(x . y) + sum of exp(x . z)), z the other users' views; each view once as x.

    Args:
        left, right: (n, d) float, two views of n histories.
    """
    states = torch.cat([left, right])
    scores = states @ states.T
    own = torch.arange(len(states), device=states.device)
    scores = scores.masked_fill(own[:, None] == own, -torch.inf)
    return F.cross_entropy(scores, own.roll(len(left)))


def altered(sequences: np.ndarray, mask_item: int, rng: np.random.Generator) -> np.ndarray:
    """A view of each sequence: cropped to a piece, with some items masked, or with a piece shuffled.

    Args:
        sequences: (batch, length) int64, left-padded.
        mask_item: what stands for a masked item.

    Returns:
        (batch, length) int64, left-padded.
    """
    width = sequences.shape[1]
    lengths = (sequences > 0).sum(axis=1)[:, None]
    column = np.arange(width)[None, :]
    oldest = width - lengths
    real = column >= oldest
    how, start = rng.integers(3, size=lengths.shape), rng.random(lengths.shape)
    draw = rng.random(sequences.shape)

    kept = np.maximum(1, np.floor(CROP * lengths)).astype(np.int64)
    begin = np.floor(start * (lengths - kept + 1)).astype(np.int64)
    moved = np.take_along_axis(sequences, np.maximum(column + begin + kept - lengths, 0), axis=1)
    cropped = np.where(column >= width - kept, moved, PAD)

    order = np.argsort(np.argsort(np.where(real, draw, 2.0), axis=1), axis=1)
    masked = np.where(real & (order < np.floor(MASK * lengths)), mask_item, sequences)

    size = np.floor(REORDER * lengths).astype(np.int64)
    begin = oldest + np.floor(start * (lengths - size + 1)).astype(np.int64)
    # Sorted by these keys, a piece is shuffled and the rest stays where it is.
    keys = np.where((column >= begin) & (column < begin + size), begin + draw, column)
    reordered = np.take_along_axis(sequences, np.argsort(keys, axis=1), axis=1)

    return np.where(how == 0, cropped, np.where(how == 1, masked, reordered))


def _with_others(states: torch.Tensor, counts: list[int], peers: Peers) -> torch.Tensor:
    """The states of all processes, those of this one with their gradient."""
    if peers.size == 1:
        return states
    parts = list(peers.gather(states.detach(), counts).split(counts))
    parts[peers.rank] = states
    return torch.cat(parts)
