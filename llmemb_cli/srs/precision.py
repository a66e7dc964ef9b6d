"""In which arithmetic a recommender trains: mixed with bfloat16 where that pays, else float32.

Mixed means: the backbone and the adapter multiply in bfloat16; weights, item tables, scores, losses and the
optimizer stay in float32. bfloat16 has the range of float32, so that no scaling of the loss is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.devices import cuda_has_bf16
from llmemb_cli.srs.item_embedding import AdaptedTable, LinearTable
from llmemb_cli.srs.recommender import Recommender

# Narrower backbones are a matter of how many kernels are launched, and every cast is one (8.2 ms a step in bf16, 6.7
# in tf32, at a width of 128 on an H200).
MIXED_FROM = 512


def use_precision(model: Recommender, settings: RatSettings, device: str) -> str:
    """Set the model to the precision that the settings ask for, before it is moved to `device`.

    `auto` on a CUDA card that has bfloat16: bf16 from a width of 512 on, below that tf32; fp32 elsewhere. With bf16
    and tf32, frozen LLM vectors are kept in bfloat16: rounded here, half as much of them has to fit on a card.

    Returns:
        "bf16", "tf32" or "fp32".
    """
    auto = settings.precision == "auto" and device.startswith("cuda") and cuda_has_bf16(device)
    if settings.precision != "bf16" and not auto:
        return "fp32"
    for part in model.embedding.modules():
        if isinstance(part, AdaptedTable | LinearTable) and not part.vectors.requires_grad:
            part.vectors = part.vectors.to(torch.bfloat16)
    if auto and settings.hidden_size < MIXED_FROM:
        return "tf32"
    model.mixed = torch.bfloat16
    return "bf16"


@contextmanager
def float32_products(settings: RatSettings, device: str) -> Iterator[None]:
    """Within, a CUDA card multiplies float32 on its tensor cores (TF32), unless fp32 was asked for.

    For training alone: what is measured afterwards must not depend on whether it is in the same process.
    """
    if not device.startswith("cuda"):
        yield
        return
    exact = settings.precision == "fp32"
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if exact else "high")
    cudnn.allow_tf32 = not exact
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
