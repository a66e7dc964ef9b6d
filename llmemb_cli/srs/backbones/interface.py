"""What every backbone is: item embeddings in, a state for every position out."""

from __future__ import annotations

import torch
from torch import nn


class SequenceModel(nn.Module):
    """A backbone in two parts, so that LLM-ESR can let two views meet between them.

    Attributes:
        causal: whether no position sees a later one.
        mask_vector: what stands for [MASK], or None; in every subclass.
    """

    causal: bool = True

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """(batch, length, d): what stands before the blocks, such as positions; zero at padding where blocks mix."""
        raise TypeError(f"{type(self).__name__} has no entry")

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """(batch, length, d): the blocks."""
        raise TypeError(f"{type(self).__name__} has no blocks")

    def forward(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """States of all positions.

        Args:
            embedded: (batch, length, d) float item embeddings, padding on the left.
            real: (batch, length) bool, False at padding.

        Returns:
            (batch, length, d) float; zero at padding.
        """
        return self.run(self.enter(embedded, real), real)
