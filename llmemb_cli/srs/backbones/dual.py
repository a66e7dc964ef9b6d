"""LLM-ESR (Liu et al., NeurIPS 2024): one backbone over two views of the items, which look at each other first."""

from __future__ import annotations

import torch
from torch import nn

from llmemb_cli.srs.backbones.bert4rec import BERT4Rec
from llmemb_cli.srs.backbones.interface import SequenceModel
from llmemb_cli.srs.backbones.sasrec import attend, attention_mask

HEADS = 2  # of the cross-attention, as in the authors' code


class DualView(nn.Module):
    """Two item embeddings side by side in (collaborative, semantic), two states side by side out.

    Each view's sequence is what the other view's queries gather from it; both then pass the same backbone. The
    cross-attention looks only back where the backbone does [choice: the authors' code masks padding alone, and with a
    loss at every position it would see its targets].
    """

    def __init__(self, backbone: SequenceModel, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.causal = backbone.causal
        self.heads = HEADS if hidden_size % HEADS == 0 else 1
        self.to_collaborative, self.to_semantic = (
            nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(4)) for _ in range(2)
        )
        # [MASK] is one trainable vector over both views; the backbone's own is not used.
        bert = isinstance(backbone, BERT4Rec)
        self.mask_vector = nn.Parameter(torch.randn(2 * hidden_size) * 0.02) if bert else None
        if isinstance(backbone, BERT4Rec):
            backbone.mask_vector.requires_grad_(False)

    def forward(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """embedded (batch, length, 2 d), real (batch, length) bool -> (batch, length, 2 d) states."""
        collaborative, semantic = (self.backbone.enter(view, real) for view in embedded.chunk(2, dim=2))
        allowed = attention_mask(real, self.causal)
        views = (
            self._cross(self.to_collaborative, semantic, collaborative, allowed),
            self._cross(self.to_semantic, collaborative, semantic, allowed),
        )
        mask = real[:, :, None]
        return torch.cat([self.backbone.run(view * mask, real) for view in views], dim=2)

    def _cross(
        self, layers: nn.ModuleList, asking: torch.Tensor, asked: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        query, key, value, out = layers
        return out(attend(query(asking), key(asked), value(asked), allowed, self.heads, 0.0))
