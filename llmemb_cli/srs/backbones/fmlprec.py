"""FMLP-Rec (Zhou et al., WWW 2022): learned filters in the frequency domain instead of attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from llmemb_cli.dropout import Dropout
from llmemb_cli.srs.backbones.interface import SequenceModel

INIT_STD = 0.02


class FMLPRec(SequenceModel):
    """Item embeddings in, a state for every position out.

    A filter works on the whole window of `max_length` positions and wraps around, so that a position sees later
    ones: only the last state is fit to predict from. Padding is zero before every filter [choice: in the authors'
    code padded positions hold states of their own], so that a batch can be cut to its longest sequence.
    """

    mask_vector = None
    causal = False

    def __init__(self, hidden_size: int, max_length: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        self.positions = nn.Parameter(torch.randn(max_length, hidden_size) * INIT_STD)
        self.norm, self.dropout = nn.LayerNorm(hidden_size), Dropout(dropout)
        self.blocks = nn.ModuleList(FilterBlock(hidden_size, max_length, dropout) for _ in range(layers))

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Positions, norm and dropout: what stands before the blocks."""
        places = self.positions[self.max_length - embedded.shape[1] :]
        return self.dropout(self.norm(embedded + places)) * real[:, :, None]

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The blocks."""
        mask = real[:, :, None]
        for block in self.blocks:
            x = block(x) * mask
        return x


class FilterBlock(nn.Module):
    """A filter of every frequency and dimension, then a feed-forward network, each with residual and norm."""

    def __init__(self, hidden_size: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        self.filter = nn.Parameter(torch.randn(max_length // 2 + 1, hidden_size, 2) * INIT_STD)
        self.norm, self.dropout = nn.LayerNorm(hidden_size), Dropout(dropout)
        self.feed = FeedForward(hidden_size, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, length, d), zero at padding -> (batch, length, d)."""
        # A circular filter does not care where in the window the sequence stands: padding follows it here. The FFT
        # has no half precision.
        with torch.autocast(x.device.type, enabled=False):
            frequencies = torch.fft.rfft(x.float(), n=self.max_length, dim=1)
            frequencies = frequencies * torch.view_as_complex(self.filter)
            filtered = torch.fft.irfft(frequencies, n=self.max_length, dim=1)[:, : x.shape[1]]
        return self.feed(self.norm(self.dropout(filtered) + x))


class FeedForward(nn.Module):
    """LN(x + W2 GELU(W1 x)) with four times the width inside."""

    def __init__(self, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = linear(hidden_size, 4 * hidden_size), linear(4 * hidden_size, hidden_size)
        self.norm, self.dropout = nn.LayerNorm(hidden_size), Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., d) -> (..., d)."""
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer as the authors of FMLP-Rec and BSARec start it: small normal weights, a bias of zeros."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer
