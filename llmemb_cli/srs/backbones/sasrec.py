"""SASRec (Kang and McAuley, ICDM 2018): self-attention that looks only back."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from llmemb_cli.dropout import Dropout, mask_out
from llmemb_cli.srs.backbones.interface import SequenceModel


class SASRec(SequenceModel):
    """Item embeddings in, a state for every position out.

    Position t reads items up to t and predicts item t + 1. The newest item always has the last position.
    With `causal=False` positions see their future, as in the LLMEmb authors' code.
    """

    mask_vector = None

    def __init__(
        self, hidden_size: int, max_length: int, layers: int, heads: int, dropout: float, *, causal: bool = True
    ) -> None:
        super().__init__()
        self.max_length, self.causal, self.scale = max_length, causal, math.sqrt(hidden_size)
        self.positions = nn.Parameter(torch.randn(max_length, hidden_size) * 0.02)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(hidden_size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Scale, positions and dropout: what stands before the blocks."""
        places = self.positions[self.max_length - embedded.shape[1] :]
        return self.dropout(embedded * self.scale + places) * real[:, :, None]

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The blocks and the last norm."""
        mask = real[:, :, None]
        allowed = attention_mask(real, self.causal)
        for block in self.blocks:
            x = block(x, allowed) * mask
        return self.norm(x) * mask


def attention_mask(real: torch.Tensor, causal: bool) -> torch.Tensor:
    """(batch, 1, length, length) bool, True where a query may look: real keys, not later ones if causal.

    Every query may look at itself, so that a row of padding alone is not a softmax over nothing.
    """
    length, device = real.shape[1], real.device
    # What a recorded step reads must stay where it is: only a CPU's are kept.
    itself, past = _kept_places(length) if device.type == "cpu" else _places(length, device)
    allowed = real[:, None, :] | itself
    return (allowed & past if causal else allowed)[:, None]


@lru_cache(maxsize=16)
def _kept_places(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _places(length, torch.device("cpu"))


def _places(length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(length, length) bool each: which key is the query itself, and which is not later than the query."""
    itself = torch.eye(length, dtype=torch.bool, device=device)
    return itself, torch.ones_like(itself).tril()


class Block(nn.Module):
    """One SASRec block: the residual goes to the normalised query, keys and values are not normalised."""

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, dropout
        self.query_norm, self.feed_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size) for _ in range(3))
        self.up, self.down = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """x (batch, length, d), allowed (batch, 1, length, length) -> (batch, length, d)."""
        normed = self.query_norm(x)
        attended = attend(self.query(normed), self.key(x), self.value(x), allowed, self.heads, self._dropout_now())
        fed = self.feed_norm(normed + attended)
        return fed + self.dropout(self.down(self.dropout(F.relu(self.up(fed)))))

    def _dropout_now(self) -> float:
        return self.attention_dropout if self.training else 0.0


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor,
    heads: int,
    dropout: float,
) -> torch.Tensor:
    """Multi-head scaled dot-product attention over (batch, length, d)."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    if dropout and q.device.type == "cpu":
        # torch has no fused kernel with dropout here: its own way is this one with dearer random numbers.
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
        weights = scores.masked_fill_(~allowed, -torch.inf).softmax(dim=-1)
        out = mask_out(weights, dropout) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)
