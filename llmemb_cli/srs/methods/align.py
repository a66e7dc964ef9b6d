"""LLMEmb: alignment of LLM item embeddings with collaborative ones (Eq. 7), over the distinct items of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.cross_entropy import ALIGNED
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender

# Cosines divided by less than this may overflow an exponential.
SMALLEST_TEMPERATURE = 0.02
# Pairs that a CPU works on at a time: they stay in its cache.
BLOCK_VALUES = 1 << 18


class Align:
    """alpha times the contrast of each adapted item embedding with all collaborative ones of the batch."""

    def __init__(self, settings: RatSettings, collaborative: torch.Tensor) -> None:
        """`collaborative`: (n_items, d) float, item embeddings of a trained recommender; they take no gradient."""
        self.settings, self.collaborative = settings, collaborative
        self.temperature = collaborative.new_tensor(settings.gamma)

    @property
    def recordable(self) -> bool:
        return self._fast

    @property
    def _fast(self) -> bool:
        return self.settings.align_loss == "infonce" and self.settings.gamma >= SMALLEST_TEMPERATURE

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        return None

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        # Every process contrasts all items of the batch: their number is the number of negatives.
        known, gamma = F.embedding(step.batch.items - 1, self.collaborative), self.settings.gamma
        if len(known) == 1:
            loss = step.embedded[:0].sum()  # nothing to contrast with: 0, also where a loss of `paper` has no value
        elif self._fast:
            loss = infonce(step.embedded, known, gamma, step.batch.distinct)
        else:
            loss = contrastive_loss(self.settings.align_loss, step.embedded, known, self.temperature)
        return self.settings.alpha * loss / step.peers.size


def infonce(
    left: torch.Tensor, right: torch.Tensor, temperature: float, real: torch.Tensor | None = None
) -> torch.Tensor:
    """`contrastive_loss("infonce", ...)` with one exponential a pair where the plain formula takes four.

    Cosines are bounded, so that both directions can share exp(cosine / temperature) without a shift.

    Args:
        left, right: (n, d) float; `right` takes no gradient.
        real: (n,) bool, False for rows that are as if they were not there; None: all are.
    """
    return _InfoNCE.apply(F.normalize(left, dim=1), F.normalize(right, dim=1), temperature, real)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, left: torch.Tensor, right: torch.Tensor, temperature: float, real: torch.Tensor | None
    ) -> torch.Tensor:
        scaled, count = right / temperature, len(left)
        block = max(BLOCK_VALUES // count, 16) if left.device.type == "cpu" else count
        powers = left.new_empty(count, -(-count // ALIGNED) * ALIGNED)[:, :count]
        rows, columns = left.new_empty(count), left.new_zeros(count)
        for at in range(0, count, block):
            part = torch.mm(left[at : at + block], scaled.T, out=powers[at : at + block]).exp_()
            if real is not None:
                part.mul_(real[at : at + block, None] & real)
            torch.sum(part, dim=1, out=rows[at : at + block])
            columns += part.sum(dim=0)
        positive = (left * scaled).sum(dim=1)
        if real is not None:
            rows, columns = rows.masked_fill(~real, 1), columns.masked_fill(~real, 1)
        ctx.save_for_backward(powers, rows, columns, scaled, real)
        ctx.block, ctx.among = block, count if real is None else real.sum()
        losses = (rows.log() + columns.log()) / 2 - positive
        return (losses if real is None else losses * real).sum() / ctx.among

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        powers, rows, columns, scaled, real = ctx.saved_tensors
        # The sum over j of P_ij (1 / row_i + 1 / column_j) / 2 right_j, minus the positive.
        by_row, by_column = (0.5 / rows)[:, None], 0.5 / columns
        pulled = torch.empty_like(scaled)
        for at in range(0, len(rows), ctx.block):
            part = slice(at, at + ctx.block)
            torch.mm((by_row[part] + by_column).mul_(powers[part]), scaled, out=pulled[part])
        pulled = pulled - scaled if real is None else (pulled - scaled) * real[:, None]
        return pulled * (outer[0] / ctx.among), None, None, None
