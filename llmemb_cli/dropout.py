"""Dropout whose masks cost little on a CPU, where torch spends more time drawing them than on matrix products."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

# The bits of 1.0; a mask is made as integers and read as floats, since converting from bool is slow on a CPU.
_ONE = {
    torch.bfloat16: (torch.int16, 0x3F80),
    torch.float16: (torch.int16, 0x3C00),
    torch.float32: (torch.int32, 0x3F800000),
}


def random_mask(count: int, ratio: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(count,) zeros with probability `ratio` (to 1 / 65,536) and ones, from torch's generator of the device."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device).bernoulli_(1 - ratio)
    integer, one = _ONE[dtype]
    per = 8 // dtype.itemsize
    bits = torch.empty(-(-count // per), dtype=torch.int64).random_(-(2**63), None).view(integer)[:count]
    least = torch.iinfo(integer).min
    cut = min(least + round(ratio * 2 ** (8 * dtype.itemsize)), torch.iinfo(integer).max - 1)
    if cut == least:
        return torch.ones(count, dtype=dtype)  # a ratio that 16 bits round to 0
    # 0 below the cut, 1 from it on.
    return bits.clamp_(cut - 1, cut).sub_(cut - 1).mul_(one).view(dtype)


def mask_out(x: torch.Tensor, ratio: float) -> torch.Tensor:
    """`x` with a share `ratio` of zeros, to 1 / 65,536, and the rest scaled up; CPU tensors."""
    mask = random_mask(x.numel(), ratio, torch.bfloat16, x.device).view(x.shape)
    return x * mask.to(x.dtype).mul_(1 / (1 - ratio))


class Dropout(nn.Module):
    """`nn.Dropout`; on a CPU with masks of 16 random bits a number."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` itself outside training."""
        if self.training and self.ratio and x.device.type == "cpu":
            return mask_out(x, self.ratio)
        return F.dropout(x, self.ratio, self.training)
