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
    if wanted == "auto":
        return next(name for name, present in here.items() if present)
    if not here.get(wanted.split(":")[0], False):
        raise MissingError(f"no device {wanted} on this machine", hint="use --device auto or cpu")
    return wanted


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; without that bf16 is slower than fp32 on a CPU."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def pick_dtype(precision: str, device: str) -> torch.dtype:
    """The arithmetic of the LLM: bf16 where the hardware has it, else fp32.

    Raises:
        MissingError: fp16 on a CPU, which computes it slowly and overflows.
    """
    import torch

    if precision == "auto":
        if device.startswith("cuda"):
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return torch.bfloat16 if device == "cpu" and cpu_has_bf16() else torch.float32
    if precision == "fp16" and device == "cpu":
        raise MissingError("fp16 needs a GPU", hint="use --precision bf16 or fp32 on a CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
