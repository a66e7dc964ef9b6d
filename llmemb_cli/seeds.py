"""One seed for a run; every random stream is derived from it by name, so streams never share state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the stream named by `labels`, the same on every machine and Python version."""
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_rng(seed: int, *labels: str | int) -> np.random.Generator:
    """A NumPy generator for the named stream."""
    return np.random.default_rng(stream_seed(seed, *labels))


def torch_rng(seed: int, *labels: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for the named stream on `device`."""
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, *labels))
    return generator


def seed_torch(seed: int) -> None:
    """Seed torch's own generators, as `torch.manual_seed` does but for devices that nothing has been put on.

    That one keeps a stack trace for every such device, which takes up to a millisecond a step of training.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
