"""GRU4Rec (Hidasi et al., ICLR 2016; Hidasi and Karatzoglou, CIKM 2018) with shared item embeddings."""

from __future__ import annotations

import torch
from torch import nn


class GRU4Rec(nn.Module):
    """Item embeddings in, a state for every position out; padding never enters the state."""

    def __init__(self, hidden_size: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden_size, hidden_size, layers, batch_first=True)

    def forward(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """As `SASRec.forward`.

        The sequences are moved to the left, so that the state starts at their first item, and back.
        """
        length = embedded.shape[1]
        shift = length - real.sum(dim=1)
        place = torch.arange(length, device=embedded.device)[None, :]
        to_left = ((place + shift[:, None]) % length)[:, :, None].expand_as(embedded)
        states, _ = self.gru(self.dropout(embedded.gather(1, to_left)))
        to_right = ((place - shift[:, None]) % length)[:, :, None].expand_as(states)
        return self.dropout(states).gather(1, to_right) * real[:, :, None]
