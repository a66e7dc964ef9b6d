"""LLMEmb: alignment of LLM item embeddings with collaborative ones (Eq. 7), over the distinct items of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender

# Cosines divided by less than this may overflow an exponential.
SMALLEST_TEMPERATURE = 0.02


class Align:
    """alpha times the contrast of each adapted item embedding with all collaborative ones of the batch."""

    def __init__(self, settings: RatSettings, collaborative: torch.Tensor) -> None:
        """`collaborative`: (n_items, d) float, item embeddings of a trained recommender; they take no gradient."""
        self.settings, self.collaborative = settings, collaborative

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        return None

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        # Every process contrasts all items of the batch: their number is the number of negatives.
        known, gamma = self.collaborative[step.batch.items - 1], self.settings.gamma
        if self.settings.align_loss == "infonce" and gamma >= SMALLEST_TEMPERATURE:
            loss = infonce(step.embedded, known, gamma)
        else:
            loss = contrastive_loss(self.settings.align_loss, step.embedded, known, step.embedded.new_tensor(gamma))
        return self.settings.alpha * loss / step.peers.size


def infonce(left: torch.Tensor, right: torch.Tensor, temperature: float) -> torch.Tensor:
    """`contrastive_loss("infonce", ...)` with one exponential a pair where the plain formula takes four.

    Cosines are bounded, so that both directions can share exp(cosine / temperature) without a shift.

    Args:
        left, right: (n, d) float; `right` takes no gradient.
    """
    return _InfoNCE.apply(F.normalize(left, dim=1), F.normalize(right, dim=1), temperature)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor, temperature: float) -> torch.Tensor:
        scaled = right / temperature
        powers = (left @ scaled.T).exp_()
        rows, columns = powers.sum(dim=1), powers.sum(dim=0)
        positive = (left * scaled).sum(dim=1)
        ctx.save_for_backward(powers, rows, columns, scaled)
        return ((rows.log() + columns.log()) / 2 - positive).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        powers, rows, columns, scaled = ctx.saved_tensors
        # The sum over j of P_ij (1 / row_i + 1 / column_j) / 2 right_j, minus the positive.
        pulled = (powers @ scaled) / rows[:, None] + powers @ (scaled / columns[:, None])
        return (pulled / 2 - scaled) * (outer[0] / len(rows)), None, None
