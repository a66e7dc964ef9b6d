"""Gradient caching: contrast more items than pass the model at once, with the gradients of one large batch.

First all micro-batches pass without a graph and the loss gives the gradient of every vector; then each
passes again, with the same dropout, and is driven backwards by the gradient of its vectors
(Gao et al., Scaling deep contrastive learning batch size under memory limited setup, 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Batch = TypeVar("Batch")


def cached_backward(
    batches: Sequence[Batch],
    embed: Callable[[Batch], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    seed_of: Callable[[int], int],
) -> float:
    """Add the gradients of `loss_of(all vectors)` to the model's parameters; returns the loss.

    Args:
        batches: micro-batches, in the order of the vectors.
        embed: a micro-batch to its vectors (n, d), with a graph where gradients are on.
        loss_of: all vectors (total, d) to a scalar; may use further trainable parameters.
        seed_of: the random seed of a micro-batch's pass, so that both passes drop the same units.
    """
    if len(batches) == 1:
        torch.manual_seed(seed_of(0))
        loss = loss_of(embed(batches[0]))
        loss.backward()
        return float(loss.detach())
    vectors = []
    with torch.no_grad():
        for number, batch in enumerate(batches):
            torch.manual_seed(seed_of(number))
            vectors.append(embed(batch))
    joined = torch.cat(vectors).requires_grad_()
    loss = loss_of(joined)
    loss.backward()
    assert joined.grad is not None
    gradients = joined.grad.split([len(part) for part in vectors])
    for number, (batch, gradient) in enumerate(zip(batches, gradients, strict=True)):
        torch.manual_seed(seed_of(number))
        embed(batch).backward(gradient)
    return float(loss.detach())
