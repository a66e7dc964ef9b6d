"""Where a backbone's item embeddings come from: a trainable table, or frozen LLM vectors and an adapter."""

from __future__ import annotations

import torch
from torch import nn

INIT_STD = 0.02


class ItemTable(nn.Module):
    """A trainable embedding a row. Row 0, the padding, is zero and stays zero."""

    def __init__(self, n_items: int, hidden_size: int, start: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_items, hidden_size) * INIT_STD if start is None else start.clone())

    def table(self) -> torch.Tensor:
        """(n_items + 1, d): zeros, then every item."""
        return torch.cat([self.weight.new_zeros(1, self.weight.shape[1]), self.weight])

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """(k, d): the embeddings of distinct `items` (k,) int64; 0 gives zeros."""
        return nn.functional.embedding(items, self.table())


class AdaptedTable(nn.Module):
    """Frozen LLM vectors through two linear layers, W1 (W2 x + b2) + b1 (LLMEmb Eq. 5 and 6).

    There is no non-linearity, so the two matrices are multiplied once a step and applied as one; the
    gradients of both are exact. With `freeze=False` the LLM vectors are trained as well (Table 2).
    """

    def __init__(self, vectors: torch.Tensor, hidden_size: int, *, freeze: bool = True) -> None:
        super().__init__()
        width = vectors.shape[1]
        middle = max(width // 2, hidden_size)
        self.inner = nn.Linear(width, middle)
        self.outer = nn.Linear(middle, hidden_size)
        self.vectors: torch.Tensor
        if freeze:
            self.register_buffer("vectors", vectors.clone())
        else:
            self.vectors = nn.Parameter(vectors.clone())

    def _affine(self, vectors: torch.Tensor) -> torch.Tensor:
        weight = self.outer.weight @ self.inner.weight
        bias = self.outer.weight @ self.inner.bias + self.outer.bias
        return nn.functional.linear(vectors.to(weight.dtype), weight, bias)

    def table(self) -> torch.Tensor:
        """(n_items + 1, d): zeros for the padding (not the adapter's bias), then every item."""
        adapted = self._affine(self.vectors)
        return torch.cat([adapted.new_zeros(1, adapted.shape[1]), adapted])

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """(k, d): the embeddings of distinct `items` (k,) int64; 0 gives zeros."""
        adapted = self._affine(nn.functional.embedding((items - 1).clamp(min=0), self.vectors))
        return adapted * (items > 0).to(adapted.dtype)[:, None]


class FrozenTable(nn.Module):
    """LLM vectors reduced to the hidden size, frozen: LLMEmb without adapter (Table 2)."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.vectors: torch.Tensor
        self.register_buffer("vectors", torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors]))

    def table(self) -> torch.Tensor:
        """(n_items + 1, d)."""
        return self.vectors

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """(k, d)."""
        return nn.functional.embedding(items, self.vectors)


Embedding = ItemTable | AdaptedTable | FrozenTable
