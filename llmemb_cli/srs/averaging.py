"""A moving average of the trained weights, which is what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

Weights = list[torch.nn.Parameter]
Average = list[torch.Tensor]


def start_average(trained: Weights, decay: float) -> Average:
    """A copy of the trained weights; nothing where `decay` is 0."""
    return [weight.detach().clone() for weight in trained] if decay else []


def update_average(average: Average, trained: Weights, decay: float, steps: int) -> None:
    """Average in the weights after the step with number `steps`, from 1 (Polyak and Juditsky, 1992).

    The first steps count for more, so that the start is soon forgotten: in step t the decay is at most
    (1 + t) / (10 + t).
    """
    if average:
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(average, trained, steps)


@contextmanager
def averaged(average: Average, trained: Weights) -> Iterator[None]:
    """Within, the model has the averaged weights; training then goes on from its own."""
    _swap(average, trained)
    try:
        yield
    finally:
        _swap(average, trained)


def _swap(average: Average, trained: Weights) -> None:
    for place, kept in enumerate(average):
        average[place], trained[place].data = trained[place].data, kept
