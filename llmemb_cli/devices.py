"""Which device to compute on, and in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmemb_cli.errors import MissingError

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str) -> str:
    """`auto` as cuda, mps or cpu, whichever is here first; anything else is checked.

    Raises:
        MissingError: the device asked for is not here.
    """
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if here["cuda"]:
        # By default torch lets recurrent networks round float32 to TF32; training asks for that where it wants it.
        torch.backends.cudnn.allow_tf32 = False
    if wanted == "auto":
        return next(name for name, present in here.items() if present)
    name, colon, number = wanted.partition(":")
    cards = torch.cuda.device_count() if name == "cuda" else 1
    if not here.get(name, False) or (colon and not (number.isdigit() and int(number) < cards)):
        raise MissingError(f"no device {wanted} on this machine", hint="use --device auto or cpu")
    return wanted


def free_memory() -> int:
    """Bytes of memory that this process may still take: what is free on the machine, or in its container or job."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return min([free, *_group_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _group_room(groups: Path, mounted: Path) -> list[int]:
    """What Linux control groups leave to this process: Docker, Kubernetes and Slurm end it beyond.

    Pages of files that were read some time ago count as used and are given up when memory is needed.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return []
    room = []
    for number, controllers, path in lines:
        if number == "0":
            top, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = top / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder == top or top in folder.parents:
                room += _room_of(folder, *names)
    return room


def _room_of(folder: Path, limit: str, used: str, given_up: str) -> list[int]:
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return [] if most == "max" else [max(int(most) - now + int(stat.get(given_up, 0)), 0)]
    except (OSError, ValueError):
        return []  # a group without limits, or one that is not shown here


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; without that bf16 is slower than fp32 on a CPU."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def cuda_has_bf16(device: str) -> bool:
    """Whether a CUDA card multiplies bfloat16 in hardware; an older one emulates it, slower than fp32."""
    import torch

    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8


def give_back_memory() -> None:
    """Leave memory of a card that this process keeps for later, but does not use, to other processes."""
    import gc

    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def pick_dtype(precision: str, device: str) -> torch.dtype:
    """The arithmetic of the LLM: bf16 where the hardware has it, else fp32.

    Raises:
        MissingError: fp16 on a CPU, which computes it slowly and overflows.
    """
    import torch

    if precision == "auto":
        if device.startswith("cuda"):
            return torch.bfloat16 if cuda_has_bf16(device) else torch.float32
        return torch.bfloat16 if device == "cpu" and cpu_has_bf16() else torch.float32
    if precision == "fp16" and device == "cpu":
        raise MissingError("fp16 needs a GPU", hint="use --precision bf16 or fp32 on a CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
