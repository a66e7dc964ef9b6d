"""Several processes that train together, as `torchrun` and `accelerate launch` start them.

Process 0 alone writes and speaks. Every process holds the whole frozen model and the whole LoRA adapter,
passes its share of the texts through it, and sees the vectors of all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

# Others wait while process 0 fetches a model or makes LLM vectors, which takes days with a large one. They need not
# notice that it died: the launcher ends them then.
WAIT = timedelta(days=3)


def world_size() -> int:
    """How many processes were started together (1 alone)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this process; 0 writes."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


@dataclass(frozen=True)
class Peers:
    """This process among those that train together. Each method is a meeting: all must call it, in the same order."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def share(self, count: int) -> list[int]:
        """How many of `count` rows each process has when row i goes to process i % size."""
        return [len(range(rank, count, self.size)) for rank in range(self.size)]

    def gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Rows of all processes below each other: (counts[rank], d) here, (sum(counts), d) back, no gradient."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return rows
        padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; a process without one counts as zero."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        at = 0
        for parameter in parameters:
            parameter.grad = flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in one process at least."""
        return self.largest(int(flag)) > 0

    def largest(self, value: int) -> int:
        """The largest `value` of all processes."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            return value
        held = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return int(held)

    def leave(self) -> None:
        """End the connection."""
        import torch.distributed as dist

        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Peers()


def join_peers(device: str) -> Peers:
    """Meet the other processes of WORLD_SIZE; alone without that variable.

    Args:
        device: this process's device, `cuda:1` or `cpu`; NCCL connects CUDA devices, gloo others.

    Raises:
        WrongUseError: the variables of the launcher are incomplete.
    """
    if world_size() == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    from llmemb_cli.errors import WrongUseError

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise WrongUseError(
            f"WORLD_SIZE is {world_size()} but {', '.join(missing)} is not set",
            hint="start with `torchrun --nproc-per-node N -m llmemb_cli scft`, or unset WORLD_SIZE",
        )
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=WAIT)
    return Peers(dist.get_rank(), dist.get_world_size(), device if cuda else "cpu")


def own_device(wanted: str) -> str:
    """The device of this process: `auto` and `cuda` become the card with this process's local number.

    Raises:
        MissingError: the device asked for, or a card for each process, is not here.
    """
    from llmemb_cli.devices import pick_device

    device = pick_device(wanted)
    if device == "cuda" and world_size() > 1:
        return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return device
