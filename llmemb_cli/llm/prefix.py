"""The beginning that all prompts share, computed once: in a decoder its states do not depend on what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmemb_cli.assets.architecture import ENCODERS
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.pooling import embed_batch, pad_tokens, pool

# Shorter beginnings save less than the cache costs.
LEAST_TOKENS = 4
# Largest difference between a vector with and without the cache, relative to its length, before it is not used.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
CHECKED = 4


@dataclass(frozen=True)
class Prefix:
    """The shared beginning of all prompts.

    Attributes:
        length: its tokens.
        keys_values: of every layer, each (1, heads, length, head_dim).
        state_sum: (d,) float32, its states of the last layer added up.
    """

    length: int
    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    state_sum: torch.Tensor


def common_prefix(token_lists: Sequence[list[int]]) -> int:
    """Tokens that all lists begin with; at least one token of every list is left over."""
    # What the smallest and the largest list share in order, all lists between them share.
    first, last = min(token_lists), max(token_lists)
    length = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        length += 1
    return min(length, min(map(len, token_lists)) - 1)


@torch.no_grad()
def compute_prefix(loaded: LoadedModel, token_lists: Sequence[list[int]], pooling: str) -> Prefix | None:
    """The states of the prompts' shared beginning, or None where the model does not allow it.

    A few prompts are computed both ways first: a model that looks ahead, or keeps something else than keys and
    values, gives other vectors and is read without the cache.
    """
    from transformers import DynamicCache

    model = loaded.model
    length = common_prefix(token_lists)
    if length < LEAST_TOKENS or model.config.model_type in ENCODERS:
        return None
    ids = torch.tensor([token_lists[0][:length]], device=loaded.device)
    # A cache of its own keeps the whole prefix also where a layer sees a window only; the mask narrows it again.
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=DynamicCache(), use_cache=True)
    layers = getattr(getattr(out, "past_key_values", None), "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        return None
    keys_values = [(layer.keys.clone(), layer.values.clone()) for layer in layers]
    if any(keys.shape[2] != length for keys, _ in keys_values):
        return None
    prefix = Prefix(length, keys_values, out.last_hidden_state[0].float().sum(dim=0))
    return prefix if _agrees(loaded, prefix, token_lists, pooling) else None


def _agrees(loaded: LoadedModel, prefix: Prefix, token_lists: Sequence[list[int]], pooling: str) -> bool:
    step = max(len(token_lists) // CHECKED, 1)
    some = sorted(token_lists[::step][:CHECKED], key=len)
    pad = loaded.tokenizer.pad_token_id
    ids, mask = (tensor.to(loaded.device) for tensor in pad_tokens(some, pad))
    rest, rest_mask = (tensor.to(loaded.device) for tensor in pad_tokens([t[prefix.length :] for t in some], pad))
    plain = embed_batch(loaded.model, ids, mask, pooling)
    ahead = embed_after(loaded.model, prefix, rest, rest_mask, pooling)
    return bool(((plain - ahead).norm(dim=1) <= TOLERANCE[loaded.dtype] * plain.norm(dim=1)).all())


def embed_after(model: Any, prefix: Prefix, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Vectors of prompts whose first `prefix.length` tokens are computed already.

    Args:
        ids, mask: (batch, rest) int64, the tokens after the prefix, padded on the right.

    Returns:
        (batch, d) float32.
    """
    from transformers import DynamicCache

    rows, rest = ids.shape
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix.keys_values):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    positions = torch.arange(prefix.length, prefix.length + rest, device=ids.device).expand(rows, -1)
    whole = torch.cat([mask.new_ones(rows, prefix.length), mask], dim=1)
    states = model(
        input_ids=ids, attention_mask=whole, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    if pooling == "last":
        return pool(states, mask, pooling)
    count = mask.sum(dim=1, keepdim=True)
    return (pool(states, mask, pooling) * count + prefix.state_sum) / (count + prefix.length)
