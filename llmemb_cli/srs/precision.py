"""In which arithmetic a recommender trains: mixed with bfloat16 where the device is made for it, else float32.

Mixed means: the backbone and the adapter multiply in bfloat16; weights, item tables, scores, losses and the
optimizer stay in float32. bfloat16 has the range of float32, so that no scaling of the loss is needed.
"""

from __future__ import annotations

import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.srs.item_embedding import AdaptedTable, LinearTable
from llmemb_cli.srs.recommender import Recommender


def use_precision(model: Recommender, settings: RatSettings, device: str) -> str:
    """Set the model, already on its device, to the precision that the settings ask for.

    `auto` is bf16 on CUDA cards that have it and fp32 elsewhere. Frozen LLM vectors are then kept in bfloat16.

    Returns:
        "bf16" or "fp32".
    """
    cuda = device.startswith("cuda")
    mixed = settings.precision == "bf16" or (settings.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    if not mixed:
        return "fp32"
    model.mixed = torch.bfloat16
    if cuda:
        # Scores and the full softmax multiply in float32, on tensor cores.
        torch.set_float32_matmul_precision("high")
    for part in model.embedding.modules():
        if isinstance(part, AdaptedTable | LinearTable) and not part.vectors.requires_grad:
            part.vectors = part.vectors.to(torch.bfloat16)
    return "bf16"
