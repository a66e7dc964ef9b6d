"""Caser (Tang and Wang, WSDM 2018): convolutions over the newest items, as if they were a picture."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from llmemb_cli.dropout import Dropout
from llmemb_cli.srs.backbones.interface import SequenceModel


class Caser(SequenceModel):
    """Item embeddings in, a state for every position out, made of the `window` items up to it.

    Horizontal filters look for groups of following items, vertical ones weigh the items of the window. Differences
    from the paper [choice]: no embedding of the user, so that states exist for any history, and the next item alone
    is learned, at every position, not the next three.
    """

    mask_vector = None

    def __init__(self, hidden_size: int, dropout: float, *, window: int, horizontal: int, vertical: int) -> None:
        super().__init__()
        self.window = window
        self.horizontal = nn.ModuleList(nn.Conv1d(hidden_size, horizontal, height + 1) for height in range(window))
        self.vertical = nn.Linear(window, vertical)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(horizontal * window + vertical * hidden_size, hidden_size)

    def enter(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Zeros at padding."""
        return embedded * real[:, :, None]

    def run(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The convolutions of all windows at once, and the layer behind them."""
        before = F.pad(x, (0, 0, self.window - 1, 0)).transpose(1, 2)  # (batch, d, length + window - 1)
        parts = []
        for height, layer in enumerate(self.horizontal, start=1):
            found = F.relu(layer(before))
            # A window holds window - height + 1 places for a filter of this height; the best one counts.
            parts.append(F.max_pool1d(found, self.window - height + 1, stride=1).transpose(1, 2))
        windows = before.unfold(2, self.window, 1)  # (batch, d, length, window)
        parts.append(self.vertical(windows).permute(0, 2, 3, 1).flatten(2))
        return F.relu(self.out(self.dropout(torch.cat(parts, dim=2)))) * real[:, :, None]
