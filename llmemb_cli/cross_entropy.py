"""Softmax cross-entropy over the whole catalogue without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

# Logits that exist at one time. On a CPU a block that stays in its cache is as fast as any larger one.
BLOCK_VALUES = {"cpu": 1 << 21, "cuda": 1 << 28, "mps": 1 << 25}
# Rows of logits begin at multiples of this: a matrix product whose rows begin anywhere takes up to twice as long.
ALIGNED = 16


def cross_entropy(
    states: torch.Tensor,
    targets: torch.Tensor,
    items: torch.Tensor,
    bias: torch.Tensor | None = None,
    block: int | None = None,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over positions of -r_target + log sum_i exp(r_i) (Klenitskiy and Vasilev, RecSys 2023).

    Loss and gradients equal those of the plain formula. The gradients are made while a block's logits are there,
    so that they need not be kept for the backward pass or computed twice.

    Args:
        states: (n, d) float.
        targets: (n,) int64 rows of `items`.
        items: (N, d) float item embeddings.
        bias: (N,) float or None.
        block: positions at a time; default: as many as suit the device.
        real: (n,) bool, False where a position does not count; None where all do.
    """
    if block is None:
        block = max(BLOCK_VALUES[states.device.type] // len(items), 16)
    offset = states.new_zeros(len(items)) if bias is None else bias
    weights = None if real is None else real[:, None].to(states.dtype)
    return _CrossEntropy.apply(states, targets, items, offset, bias is not None, block, weights)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        targets: torch.Tensor,
        items: torch.Tensor,
        bias: torch.Tensor,
        has_bias: bool,
        block: int,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        total = states.new_zeros(())
        grad_states = torch.empty_like(states)
        grad_items = torch.zeros_like(items) if ctx.needs_input_grad[2] else None
        grad_bias = torch.zeros_like(bias)
        buffer = states.new_empty(min(block, len(states)), -(-len(items) // ALIGNED) * ALIGNED)
        for start in range(0, len(states), block):
            part, wanted = states[start : start + block], targets[start : start + block, None]
            logits = torch.mm(part, items.T, out=buffer[: len(part), : len(items)])  # (block, N)
            if has_bias:
                logits += bias
            positive = logits.gather(1, wanted)
            top = logits.amax(dim=1, keepdim=True)
            logits.sub_(top).exp_()
            mass = logits.sum(dim=1, keepdim=True)
            losses = mass.log() + top - positive
            # From here on `logits` holds the derivative: softmax minus one at the target.
            logits.div_(mass).scatter_add_(1, wanted, -torch.ones_like(positive))
            if weights is not None:
                losses = losses * weights[start : start + block]
                logits *= weights[start : start + block]
            total += losses.sum()
            torch.mm(logits, items, out=grad_states[start : start + block])
            if grad_items is not None:
                grad_items.addmm_(logits.T, part)
            if has_bias:
                grad_bias += logits.sum(dim=0)
        ctx.save_for_backward(grad_states, grad_items, grad_bias)
        ctx.has_bias = has_bias
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        grad_states, grad_items, grad_bias = ctx.saved_tensors
        scale = outer[0]
        of_items = None if grad_items is None else grad_items * scale
        of_bias = grad_bias * scale if ctx.has_bias else None
        return grad_states * scale, None, of_items, of_bias, None, None, None
