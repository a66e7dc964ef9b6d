"""LLMEmb: alignment of LLM item embeddings with collaborative ones (Eq. 7), over the distinct items of a batch."""

from __future__ import annotations

import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.srs.objective import Step
from llmemb_cli.srs.recommender import Recommender


class Align:
    """alpha times the contrast of each adapted item embedding with all collaborative ones of the batch."""

    def __init__(self, settings: RatSettings, collaborative: torch.Tensor) -> None:
        """`collaborative`: (n_items, d) float, item embeddings of a trained recommender; they take no gradient."""
        self.settings, self.collaborative = settings, collaborative

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        return None

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        # Every process contrasts all items of the batch: their number is the number of negatives.
        temperature = step.embedded.new_tensor(self.settings.gamma)
        known = self.collaborative[step.batch.items - 1]
        loss = contrastive_loss(self.settings.align_loss, step.embedded, known, temperature)
        return self.settings.alpha * loss / step.peers.size
