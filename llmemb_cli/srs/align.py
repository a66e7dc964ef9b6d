"""Alignment of LLM item embeddings with collaborative ones (LLMEmb Eq. 7), over the distinct items of a batch."""

from __future__ import annotations

import torch

from llmemb_cli.contrastive import contrastive_loss


def align_loss(kind: str, adapted: torch.Tensor, collaborative: torch.Tensor, gamma: float) -> torch.Tensor:
    """Contrast each adapted item embedding with all collaborative ones of the batch.

    Args:
        kind: infonce, paper (Eq. 7) or soft (the authors' code).
        adapted: (items, d) float, adapter output of distinct items.
        collaborative: (items, d) float, the same items in a trained recommender; takes no gradient.
        gamma: temperature.
    """
    temperature = adapted.new_tensor(gamma)
    return contrastive_loss(kind, adapted, collaborative.detach(), temperature)
