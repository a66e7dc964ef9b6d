"""Token states to one vector an item (LLMEmb Eq. 2), in float32 whatever the model computes in."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Mean of the real tokens' states, or the state of the last real token.

    Args:
        states: (batch, length, d) of any float dtype.
        mask: (batch, length) int or bool, 1 at real tokens, on either side of the padding.
        pooling: `mean` or `last`.

    Returns:
        (batch, d) float32.
    """
    if pooling == "last":
        place = torch.arange(mask.shape[1], device=mask.device)
        last = (place * mask).argmax(dim=1)
        return states[torch.arange(len(states), device=states.device), last].float()
    weights = mask.to(torch.float32)[:, :, None]
    # Sum in float32: a half-precision sum over hundreds of tokens overflows, one cause of NaN embeddings.
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1)


def embed_batch(model: Any, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Vectors of a padded batch: ids, mask (batch, length) int64 -> (batch, d) float32."""
    extra = {}
    if not bool(mask[:, 0].all()):
        # Padding on the left moves the tokens; their positions must not move with them.
        extra["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return pool(model(input_ids=ids, attention_mask=mask, **extra).last_hidden_state, mask, pooling)


def pad_tokens(token_lists: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token lists as (ids, mask), each (batch, longest) int64, padded on the right."""
    # In numpy: a loop over the rows takes as long as a pass of a small model on a card, which waits meanwhile.
    lengths = np.array([len(tokens) for tokens in token_lists])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.fromiter(chain.from_iterable(token_lists), dtype=np.int64, count=int(lengths.sum()))
    return torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64))
