"""GRU4Rec (Hidasi et al., ICLR 2016; Hidasi and Karatzoglou, CIKM 2018) with shared item embeddings."""

from __future__ import annotations

import torch
from torch import nn

from llmemb_cli.dropout import Dropout
from llmemb_cli.srs.backbones.interface import SequenceModel


class GRU4Rec(SequenceModel):
    """Item embeddings in, a state for every position out; padding never enters the state."""

    mask_vector = None

    def __init__(self, hidden_size: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(hidden_size, hidden_size, layers, batch_first=True)

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Dropout, here and nowhere else."""
        return self.dropout(embedded)

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The sequences are moved to the left, so that the state starts at their first item, and back."""
        length = x.shape[1]
        shift = length - real.sum(dim=1)
        place = torch.arange(length, device=x.device)[None, :]
        to_left = ((place + shift[:, None]) % length)[:, :, None].expand_as(x)
        states, _ = self.gru(x.gather(1, to_left))
        to_right = ((place - shift[:, None]) % length)[:, :, None].expand_as(states)
        return states.gather(1, to_right) * real[:, :, None]
