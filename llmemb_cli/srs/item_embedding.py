"""Where a backbone's item embeddings come from: a trainable table, frozen LLM vectors, or both.

Items are 1..N, row i - 1 of every table; 0 is the padding, whose embedding is zero and takes no gradient.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import embedding

INIT_STD = 0.02


class ItemEmbedding(nn.Module):
    """What every kind has: `width` numbers an item."""

    width: int

    def items(self) -> torch.Tensor:
        """(N, width): the embeddings of all items."""
        raise TypeError(f"{type(self).__name__} has no items")

    def known(self, items: torch.Tensor) -> torch.Tensor:
        """(k, width): the embeddings of distinct `items` (k,) int64, none of them the padding."""
        raise TypeError(f"{type(self).__name__} has no rows")

    def with_start(self) -> list[nn.Parameter]:
        """What is trained of single items, from a start that says something of them: no random numbers."""
        return []

    def rows(self, items: torch.Tensor) -> torch.Tensor:
        """As `known`, but 0 may be among the items: it gives zeros, and no gradient to any row."""
        found = self.known(items.clamp(min=1))
        return found * (items > 0).to(found.dtype)[:, None]

    def table(self) -> torch.Tensor:
        """(N + 1, width): zeros for the padding, then every item. A copy: for evaluation, not for training."""
        items = self.items()
        return torch.cat([items.new_zeros(1, items.shape[1]), items])


def mapped(vectors: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(k, d) float32: vectors (k, width) through a linear layer, multiplied in the vectors' own precision."""
    return nn.functional.linear(vectors, weight.to(vectors.dtype), bias.to(vectors.dtype)).to(weight.dtype)


class ItemTable(ItemEmbedding):
    """A trainable embedding an item, from random numbers of standard deviation `std`, or from `start`."""

    def __init__(
        self, n_items: int, hidden_size: int, start: torch.Tensor | None = None, std: float = INIT_STD
    ) -> None:
        super().__init__()
        self.width = hidden_size
        self.weight = nn.Parameter(torch.randn(n_items, hidden_size) * std if start is None else start.clone())
        self.random = start is None

    def with_start(self) -> list[nn.Parameter]:
        return [] if self.random else [self.weight]

    def items(self) -> torch.Tensor:
        return self.weight

    def known(self, items: torch.Tensor) -> torch.Tensor:
        return embedding(items - 1, self.weight)


class AdaptedTable(ItemEmbedding):
    """Frozen LLM vectors through two linear layers, W1 (W2 x + b2) + b1 (LLMEmb Eq. 5 and 6).

    There is no non-linearity, so the two matrices are multiplied once a step and applied as one; the gradients of
    both are exact. With `freeze=False` the LLM vectors are trained as well (Table 2). Frozen vectors are no part of
    the weights that are saved: they are in `embeddings/`.
    """

    def __init__(self, vectors: torch.Tensor, hidden_size: int, *, freeze: bool = True) -> None:
        super().__init__()
        self.width = hidden_size
        width = vectors.shape[1]
        middle = max(width // 2, hidden_size)
        self.inner = nn.Linear(width, middle)
        self.outer = nn.Linear(middle, hidden_size)
        self.vectors: torch.Tensor
        if freeze:
            self.register_buffer("vectors", vectors, persistent=False)
        else:
            self.vectors = nn.Parameter(vectors.clone())

    def with_start(self) -> list[nn.Parameter]:
        return [self.vectors] if isinstance(self.vectors, nn.Parameter) else []

    def _affine(self, vectors: torch.Tensor) -> torch.Tensor:
        weight = self.outer.weight @ self.inner.weight
        bias = self.outer.weight @ self.inner.bias + self.outer.bias
        return mapped(vectors, weight, bias)

    def items(self) -> torch.Tensor:
        return self._affine(self.vectors)

    def known(self, items: torch.Tensor) -> torch.Tensor:
        return self._affine(embedding(items - 1, self.vectors))


class LinearTable(ItemEmbedding):
    """Frozen LLM vectors through one trained linear layer: SAID with frozen vectors."""

    def __init__(self, vectors: torch.Tensor, hidden_size: int) -> None:
        super().__init__()
        self.width = hidden_size
        self.linear = nn.Linear(vectors.shape[1], hidden_size)
        self.vectors: torch.Tensor
        self.register_buffer("vectors", vectors, persistent=False)

    def items(self) -> torch.Tensor:
        return mapped(self.vectors, self.linear.weight, self.linear.bias)

    def known(self, items: torch.Tensor) -> torch.Tensor:
        return mapped(embedding(items - 1, self.vectors), self.linear.weight, self.linear.bias)


class FrozenTable(ItemEmbedding):
    """Vectors that do not train: LLMEmb without adapter (Table 2), and every model after training."""

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.width = vectors.shape[1]
        self.vectors: torch.Tensor
        self.register_buffer("vectors", vectors, persistent=False)

    def items(self) -> torch.Tensor:
        return self.vectors

    def known(self, items: torch.Tensor) -> torch.Tensor:
        return embedding(items - 1, self.vectors)


class DualTable(ItemEmbedding):
    """LLM-ESR: a collaborative table beside the adapted LLM vectors; an item is both, one after the other."""

    def __init__(self, start: torch.Tensor, vectors: torch.Tensor) -> None:
        super().__init__()
        hidden_size = start.shape[1]
        self.width = 2 * hidden_size
        self.collaborative = ItemTable(len(start), hidden_size, start)
        self.semantic = AdaptedTable(vectors, hidden_size)

    def with_start(self) -> list[nn.Parameter]:
        return self.collaborative.with_start()

    def items(self) -> torch.Tensor:
        return torch.cat([self.collaborative.items(), self.semantic.items()], dim=1)

    def known(self, items: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.collaborative.known(items), self.semantic.known(items)], dim=1)


class FusedTable(ItemEmbedding):
    """AlphaFuse: frozen whitened LLM vectors, strongest dimension first, plus a table in the last `dims` of them.

    The table starts at zero, so that training starts from the LLM vectors alone.
    """

    def __init__(self, vectors: torch.Tensor, dims: int) -> None:
        super().__init__()
        self.width = vectors.shape[1]
        self.weight = nn.Parameter(torch.zeros(len(vectors), dims))
        self.vectors: torch.Tensor
        self.register_buffer("vectors", vectors, persistent=False)

    def with_start(self) -> list[nn.Parameter]:
        return [self.weight]

    def _fuse(self, vectors: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return vectors + nn.functional.pad(table, (self.width - table.shape[1], 0))

    def items(self) -> torch.Tensor:
        return self._fuse(self.vectors, self.weight)

    def known(self, items: torch.Tensor) -> torch.Tensor:
        return self._fuse(embedding(items - 1, self.vectors), embedding(items - 1, self.weight))
