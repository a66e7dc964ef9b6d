"""What MELT adds to a recommender (Kim et al., SIGIR 2023): linear maps for short histories and rare items."""

from __future__ import annotations

import torch
from torch import nn


class MeltBranches(nn.Module):
    """W_U and W_I, and the history length up to which a user counts as tail."""

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.user, self.item = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.user, self.item):
            nn.init.xavier_normal_(layer.weight)
        self.user_threshold: torch.Tensor
        self.register_buffer("user_threshold", torch.tensor(0))

    def lift_short(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """f(S) + W_U f(S) for histories of at most `user_threshold` items, f(S) for longer ones.

        The authors split users by their training history. Here the history at hand decides, so that it also works
        for users who were not there in training [choice]. One that fills all `max_length` positions may have been
        longer: it counts as long, whatever the threshold [choice].
        """
        short = (lengths <= self.user_threshold.clamp(max=self.max_length - 1))[:, None]
        return torch.where(short, states + self.user(states), states)
