"""Attention for short texts on a CPU: two matrix products and a softmax.

The processor's fused attention cuts a sequence into blocks of some hundred tokens; for item prompts of some ten
tokens its backward pass takes several times as long as plain products over the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "llmemb_short"
# Beyond this the table of scores costs more than it saves.
LONGEST = 192


def short_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention in the form transformers calls it.

    Args:
        query: (batch, heads, length, d).
        key, value: (batch, groups, length, d); each group serves heads / groups heads.
        attention_mask: (batch or 1, 1, length, length) float, added to the scores.

    Returns:
        (batch, length, heads, d) and no weights.
    """
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if attention_mask is None or dropout or max(length, keys) > LONGEST or attention_mask.shape[1] != 1:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    scale = width**-0.5 if scaling is None else scaling
    # The heads of a group stand below each other, so that keys and values need not be repeated.
    rows = (query * scale).reshape(batch * groups, -1, width)
    scores = torch.bmm(rows, key.reshape(batch * groups, keys, width).transpose(1, 2))
    scores = scores.view(batch, heads, length, keys) + attention_mask
    weights = torch.softmax(scores, dim=-1).view(batch * groups, -1, keys)
    result = torch.bmm(weights, value.reshape(batch * groups, keys, width))
    return result.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def use_short_attention(model: Any) -> bool:
    """Let `model` attend this way where it attends through torch's fused function; whether it does."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    if getattr(model.config, "_attn_implementation", None) != "sdpa" or not hasattr(model, "set_attn_implementation"):
        return False
    AttentionInterface.register(NAME, short_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    return True
