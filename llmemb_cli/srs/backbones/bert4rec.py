"""BERT4Rec (Sun et al., CIKM 2019): a bidirectional Transformer that fills in masked items."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from llmemb_cli.dropout import Dropout
from llmemb_cli.srs.backbones.interface import SequenceModel
from llmemb_cli.srs.backbones.sasrec import attend, attention_mask


class BERT4Rec(SequenceModel):
    """Item embeddings in, a state for every position out; every position sees all others.

    [MASK] is a trainable vector of the backbone in every method. The prediction head is
    LN(GELU(W h + b)), then the scores against the item embeddings with a bias for each item.
    """

    def __init__(self, hidden_size: int, max_length: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.max_length, self.causal = max_length, False
        self.mask_vector = nn.Parameter(torch.randn(hidden_size) * 0.02)
        self.positions = nn.Parameter(torch.randn(max_length, hidden_size) * 0.02)
        self.norm, self.dropout = nn.LayerNorm(hidden_size), Dropout(dropout)
        self.blocks = nn.ModuleList(BertBlock(hidden_size, heads, dropout) for _ in range(layers))
        self.head, self.head_norm = nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size)

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Positions, norm and dropout: what stands before the blocks."""
        places = self.positions[self.max_length - embedded.shape[1] :]
        return self.dropout(self.norm(embedded + places)) * real[:, :, None]

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The blocks and the prediction head."""
        mask = real[:, :, None]
        allowed = attention_mask(real, causal=False)
        for block in self.blocks:
            x = block(x, allowed) * mask
        return self.head_norm(F.gelu(self.head(x))) * mask


class BertBlock(nn.Module):
    """One post-norm Transformer block with a GELU feed-forward of four times the width."""

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.up, self.down = nn.Linear(hidden_size, 4 * hidden_size), nn.Linear(4 * hidden_size, hidden_size)
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """x (batch, length, d), allowed (batch, 1, length, length) -> (batch, length, d)."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(self.query(x), self.key(x), self.value(x), allowed, self.heads, dropout)
        x = self.norm1(x + self.dropout(self.out(attended)))
        return self.norm2(x + self.dropout(self.down(F.gelu(self.up(x)))))
