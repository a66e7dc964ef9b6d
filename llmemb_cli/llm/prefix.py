"""The beginning that all prompts share, computed once: in a decoder its states do not depend on what follows."""

from __future__ import annotations

import inspect
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
    length = common_prefix(token_lists)
    if length < LEAST_TOKENS or loaded.model.config.model_type in ENCODERS:
        return None
    prefix = read_beginning(loaded.model, token_lists[0][:length], loaded.device)
    return prefix if prefix is not None and _agrees(loaded, prefix, token_lists, pooling) else None


def read_beginning(model: Any, tokens: list[int], device: str) -> Prefix | None:
    """The states of these tokens, with a graph where gradients are on; None if the model keeps no keys and values."""
    from transformers import DynamicCache

    # A cache of our own keeps the whole beginning also where a layer sees a window only; the mask narrows it again.
    cache = DynamicCache()
    ids = torch.tensor([tokens], device=device)
    asked = {"attention_mask": torch.ones_like(ids), "use_cache": True, cache_argument(model): cache}
    states = model(input_ids=ids, **asked).last_hidden_state
    if not cache.layers or any(getattr(layer, "keys", None) is None for layer in cache.layers):
        return None
    keys_values = [(layer.keys, layer.values) for layer in cache.layers]
    if any(keys.shape[2] != len(tokens) for keys, _ in keys_values):
        return None
    return Prefix(len(tokens), keys_values, states[0].float().sum(dim=0))


def cache_argument(model: Any) -> str:
    """What the model calls the cache it is given: `cache` in newer transformers, which warn of `past_key_values`."""
    base = getattr(model, "get_base_model", lambda: model)()
    return "cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values"


def _agrees(loaded: LoadedModel, prefix: Prefix, token_lists: Sequence[list[int]], pooling: str) -> bool:
    step = max(len(token_lists) // CHECKED, 1)
    some = sorted(token_lists[::step][:CHECKED], key=len)
    pad = loaded.tokenizer.pad_token_id
    ids, mask = (tensor.to(loaded.device) for tensor in pad_tokens(some, pad))
    rest, rest_mask = (tensor.to(loaded.device) for tensor in pad_tokens([t[prefix.length :] for t in some], pad))
    plain = embed_batch(loaded.model, ids, mask, pooling)
    ahead = embed_after(loaded.model, prefix, rest, rest_mask, pooling)
    return agree(plain, ahead, loaded.dtype)


def agree(plain: torch.Tensor, ahead: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether (n, d) vectors computed in two ways are the same, but for what a precision rounds."""
    return bool(((plain - ahead).norm(dim=1) <= TOLERANCE[dtype] * plain.norm(dim=1)).all())


def embed_after(model: Any, prefix: Prefix, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Vectors of prompts whose first `prefix.length` tokens are computed already.

    Args:
        ids: as for `states_after`.
        mask: (batch, rest) int64.

    Returns:
        (batch, d) float32.
    """
    states = states_after(model, prefix, ids, mask)
    if pooling == "last":
        return pool(states, mask, pooling)
    count = mask.sum(dim=1, keepdim=True)
    return (pool(states, mask, pooling) * count + prefix.state_sum) / (count + prefix.length)


def states_after(model: Any, prefix: Prefix, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, rest, d) states of the last layer of what follows the prefix.

    Args:
        ids: (batch, rest) int64, the tokens after the prefix, padded on the right; or what the model reads for them,
            (batch, rest, d).
        mask: (batch, rest) int64.
    """
    from transformers import DynamicCache

    rows, rest = mask.shape
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix.keys_values):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    positions = torch.arange(prefix.length, prefix.length + rest, device=ids.device).expand(rows, -1)
    whole = torch.cat([mask.new_ones(rows, prefix.length), mask], dim=1)
    asked = {"attention_mask": whole, "position_ids": positions, "use_cache": True, cache_argument(model): cache}
    read = {"input_ids" if ids.dim() == 2 else "inputs_embeds": ids}
    states: torch.Tensor = model(**read, **asked).last_hidden_state
    return states
