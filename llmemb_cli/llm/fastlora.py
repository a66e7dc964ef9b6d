"""LoRA layers for training: the mathematics of PEFT's, with fewer and cheaper operations.

PEFT's layer keeps its input twice (as it is and after dropout), makes the output three times (base, LoRA, sum) and,
on a CPU, spends more time drawing dropout than multiplying. Here base and LoRA add up in place, only the input is
kept, and the masks of a micro-batch are slices of one pool of random bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from llmemb_cli.dropout import random_mask

# Numbers in the pool beyond the largest mask: so many places a mask can begin at.
_SPARE = 1 << 18


class DropoutPool:
    """Masks of zeros and ones; `refresh` before each pass of a micro-batch, after seeding torch."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._pool: torch.Tensor | None = None

    def refresh(self) -> None:
        """The next masks come from new random bits."""
        self._pool = None

    def mask(self, like: torch.Tensor) -> torch.Tensor:
        """A mask of the shape and dtype of `like`: 0 with probability `ratio`, else 1."""
        pool = self._pool
        count = like.numel()
        if pool is None or pool.dtype != like.dtype or len(pool) < count + _SPARE:
            pool = self._pool = random_mask(2 * count + _SPARE, self.ratio, like.dtype, like.device)
        start = int(torch.randint(len(pool) - count, ()))
        return pool[start : start + count].view(like.shape)


class _LoraLinear(torch.autograd.Function):
    """y = x W' + b + s (m x) A' B' with a mask m; gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low, high = a.to(x.dtype), b.to(x.dtype)
        inner = (flat if mask is None else flat * mask.view_as(flat)) @ low.T  # (tokens, rank)
        result = F.linear(flat, weight, bias)
        result.addmm_(inner, high.T, alpha=scaling)
        ctx.save_for_backward(x, weight, low, high, inner, mask)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, low, high, inner, mask = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        flat_mask = None if mask is None else mask.view_as(flat)
        gradient = gradient.reshape(-1, gradient.shape[-1])
        inner_gradient = (gradient @ high) * ctx.scaling  # (tokens, rank)
        high_gradient = (gradient.T @ inner) * ctx.scaling
        low_gradient = inner_gradient.T @ (flat if flat_mask is None else flat * flat_mask)
        back = None
        if ctx.needs_input_grad[0]:
            back = gradient @ weight
            if flat_mask is None:
                back.addmm_(inner_gradient, low)
            else:
                back.addcmul_(inner_gradient @ low, flat_mask)
            back = back.view_as(x)
        return back, None, None, low_gradient.to(ctx.dtype), high_gradient.to(ctx.dtype), None, None


def speed_up(model: Any, ratio: float, *, pooled: bool = True) -> DropoutPool | None:
    """Give every plain LoRA layer of `model` the faster pass; None when a layer (8 or 4 bits) cannot have it.

    Args:
        model: a PEFT model with the one adapter `default`, in the precision it computes in.
        ratio: LoRA dropout.
        pooled: take masks from a pool; not with gradient checkpointing, which draws them again much later.
    """
    from peft.tuners.lora.layer import Linear, LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not all(type(m) is Linear and type(m.base_layer) is torch.nn.Linear and not m.lora_variant for m in layers):
        return None
    pool = DropoutPool(ratio)
    for layer in layers:
        layer.forward = _forward_of(layer, pool, pooled)
    return pool


def _forward_of(layer: Any, pool: DropoutPool, pooled: bool) -> Callable[..., torch.Tensor]:
    # The layer holds this pass: were it held in turn, the model would stay in memory until Python looks for cycles,
    # while the next stage loads its own.
    of, theirs = weakref.ref(layer), type(layer).forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = of()
        assert layer is not None, "a layer that is called is there"
        if args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]:
            result: torch.Tensor = theirs(layer, x, *args, **kwargs)
            return result
        base = layer.base_layer
        scaling, mask = float(layer.scaling["default"]), None
        x = x.to(base.weight.dtype)
        if layer.training and pool.ratio:
            scaling /= 1 - pool.ratio
            mask = pool.mask(x) if pooled else random_mask(x.numel(), pool.ratio, x.dtype, x.device)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        return _LoraLinear.apply(x, base.weight, base.bias, a, b, scaling, mask)

    return forward
