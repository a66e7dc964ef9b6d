"""A step of SCFT: two views of every item, one contrastive loss over all of them, one update."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.llm.gradcache import OutOfMemoryAtError, cached_backward
from llmemb_cli.llm.memory import make_room
from llmemb_cli.llm.trainer import Trainer, draw_views, share_texts
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.views import not_negatives
from llmemb_cli.seeds import numpy_rng, stream_seed


def contrast(trainer: Trainer, items: np.ndarray, step: int, scaler: torch.amp.GradScaler, report: Reporter) -> float:
    """Two fresh views of every item, one contrastive loss over all of them, gradients on the parameters."""
    settings, device = trainer.settings, trainer.loaded.device
    views = draw_views(trainer.items, items, settings.drop_ratio, numpy_rng(trainer.seed, "views", step))
    blank = not_negatives(views.first, views.second, views.prompts)
    if blank.all():
        raise BadDataError(
            f"step {step + 1} has nothing to contrast: its {len(items)} items show the same texts",
            hint="look at `llmemb prompt`; give items more attributes or lower scft.drop_ratio",
        )
    same = torch.from_numpy(blank).to(device)
    share = share_texts(trainer.tokens(views.texts), trainer.peers, device)

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        left, right = vectors[share.place].chunk(2)
        return contrastive_loss(settings.loss, left, right, trainer.log_temperature.exp(), same)

    while True:
        batches = trainer.micro.split(share.lengths)
        for parameter in (*trainer.trained, trainer.log_temperature):
            parameter.grad = None
        try:
            loss = cached_backward(
                [share.tokens[batch] for batch in batches],
                trainer.embed,
                loss_of,
                lambda number: stream_seed(
                    trainer.seed, "lora-dropout", step, number * trainer.peers.size + trainer.peers.rank
                ),
                keep=trainer.micro.kept(share.lengths, batches),
                scale=scaler.scale,
                peers=trainer.peers,
                counts=share.counts,
            )
        except OutOfMemoryAtError as error:
            failed = error.batch
        else:
            break
        if failed is not None:
            make_room(trainer.micro, share.lengths[batches[failed]], report)
    if not math.isfinite(loss):
        raise LlmembError(f"the loss of step {step + 1} is not finite", hint=trainer.loaded.not_finite_hint)
    trainer.peers.sum_gradients(trainer.trained)
    if step == 0:
        _check_gradients(trainer.model)
    return loss


def update(trainer: Trainer, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """One optimizer step; False when fp16 gradients overflowed and it was left out."""
    scaler.unscale_(optimizer)
    if trainer.settings.clip_norm:
        torch.nn.utils.clip_grad_norm_(trainer.trained, trainer.settings.clip_norm)
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def _check_gradients(model: Any) -> None:
    """LoRA with the wrong checkpointing trains nothing without a word: look once."""
    reached = [p.grad for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    if not any(bool((gradient != 0).any()) for gradient in reached):
        raise LlmembError("no gradient reaches the LoRA matrices", hint="try without gradient_checkpointing")
