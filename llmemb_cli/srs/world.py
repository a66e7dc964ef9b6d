"""Several processes that train one model: who this one is, sums over all, one that writes.

Started by `torchrun` (or `accelerate launch`), which says in the environment how many processes there are; without
it there is one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from llmemb_cli.srs.batch import Share


@dataclass(frozen=True)
class World(Share):
    """This process among all; with one process every method does nothing."""

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Add the gradients of all processes; losses are shares of the batch's, so the sum is its gradient."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        distributed.all_reduce(flat)
        at = 0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def gather(self, part: np.ndarray, total: int) -> np.ndarray:
        """Put together arrays of which every process made the elements rank, rank + size, ..."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        whole = np.empty(total, dtype=part.dtype)
        for rank, values in enumerate(parts):
            whole[rank :: self.size] = values
        return whole

    def from_writer(self, value: Any) -> Any:
        """What the writing process passed in; the others wait for it."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]


def this_world(device: str = "cpu") -> World:
    """The processes that were started together with this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not distributed.is_initialized():
        # Objects and flags travel through gloo also where gradients travel through NCCL.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    return World(distributed.get_rank(), size)
