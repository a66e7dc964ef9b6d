"""BSARec (Shin et al., AAAI 2024): self-attention, mixed with a filter that weighs slow and fast changes."""

from __future__ import annotations

import math

import torch
from torch import nn

from llmemb_cli.dropout import Dropout
from llmemb_cli.srs.backbones.fmlprec import INIT_STD, FeedForward, linear
from llmemb_cli.srs.backbones.interface import SequenceModel
from llmemb_cli.srs.backbones.sasrec import attend, attention_mask


class BSARec(SequenceModel):
    """Item embeddings in, a state for every position out.

    Attention looks only back, but the filter works on the whole window of `max_length` positions, so that a position
    sees later ones: only the last state is fit to predict from. Padding is zero before every filter [choice], see
    `FMLPRec`.
    """

    mask_vector = None
    causal = False

    def __init__(
        self,
        hidden_size: int,
        max_length: int,
        layers: int,
        heads: int,
        dropout: float,
        *,
        alpha: float,
        cutoff: int,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.positions = nn.Parameter(torch.randn(max_length, hidden_size) * INIT_STD)
        self.norm, self.dropout = nn.LayerNorm(hidden_size), Dropout(dropout)
        self.blocks = nn.ModuleList(BsaBlock(hidden_size, heads, dropout, alpha) for _ in range(layers))
        self.slow: torch.Tensor
        self.register_buffer("slow", low_pass(max_length, cutoff // 2 + 1), persistent=False)

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Positions, norm and dropout: what stands before the blocks."""
        places = self.positions[self.max_length - embedded.shape[1] :]
        return self.dropout(self.norm(embedded + places)) * real[:, :, None]

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The blocks."""
        mask, length = real[:, :, None], x.shape[1]
        allowed, slow = attention_mask(real, causal=True), self.slow[:length, :length]
        for block in self.blocks:
            x = block(x, allowed, slow) * mask
        return x


class BsaBlock(nn.Module):
    """alpha times the filtered sequence plus 1 - alpha times the attended one, then a feed-forward network."""

    def __init__(self, hidden_size: int, heads: int, dropout: float, alpha: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout, self.alpha = heads, dropout, alpha
        self.query, self.key, self.value, self.out = (linear(hidden_size, hidden_size) for _ in range(4))
        self.root_beta = nn.Parameter(torch.randn(hidden_size))
        self.filter_norm, self.attention_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.dropout, self.feed = Dropout(dropout), FeedForward(hidden_size, dropout)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor, slow: torch.Tensor) -> torch.Tensor:
        """x (batch, length, d), zero at padding; `allowed` as in SASRec; slow (length, length) -> as x."""
        low = slow.to(x.dtype) @ x
        filtered = low + self.root_beta**2 * (x - low)
        dropout = self.attention_dropout if self.training else 0.0
        attended = self.out(attend(self.query(x), self.key(x), self.value(x), allowed, self.heads, dropout))
        filtered = self.filter_norm(self.dropout(filtered) + x)
        attended = self.attention_norm(self.dropout(attended) + x)
        return self.feed(self.alpha * filtered + (1 - self.alpha) * attended)


def low_pass(length: int, kept: int) -> torch.Tensor:
    """(length, length): what a Fourier transform over `length` positions, cut to its `kept` lowest frequencies, does.

    The transform back of those frequencies is one circular filter for all dimensions, hence a matrix that depends on
    the distance of two positions alone; of a shorter sequence with zeros before it, its upper left corner.
    """
    distance = torch.arange(length, dtype=torch.float64)
    weights = torch.full((length,), 1 / length, dtype=torch.float64)
    for frequency in range(1, min(kept, length // 2 + 1)):
        # Every frequency counts twice, for its mirror image too, but for the highest of an even length.
        twice = 1 if 2 * frequency == length else 2
        weights += twice / length * torch.cos(2 * math.pi * frequency * distance / length)
    places = torch.arange(length)
    return weights[(places[:, None] - places[None, :]).abs()].float()
