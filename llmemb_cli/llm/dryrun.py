"""`llmemb scft --dry-run`: what a training would train, read, need and take, without training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from llmemb_cli.assets.architecture import BYTES_PER_TRAINED, read_architecture, weight_bytes
from llmemb_cli.assets.models import local_model
from llmemb_cli.config.settings import Settings
from llmemb_cli.devices import pick_device, pick_dtype
from llmemb_cli.errors import BadDataError, LlmembError
from llmemb_cli.llm.memory import free_bytes
from llmemb_cli.llm.plan import split_items, step_items, steps_per_epoch, total_steps
from llmemb_cli.llm.scft import bytes_per_token, make_trainer, read_items
from llmemb_cli.llm.trainer import Trainer, draw_views
from llmemb_cli.peers import ALONE
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace

# An epoch of more steps is counted by so many of them.
COUNTED_STEPS = 1000
MIB = 2**20


def dry_run(workspace: Workspace, settings: Settings, report: Reporter) -> dict[str, Any]:
    """Load the model, count the tokens of an epoch, time one micro-batch; writes nothing.

    Memory is the sum of the weights as loaded, 18 bytes a trained parameter, and the activations of the tokens whose
    activations are held at once (`memory.bytes_a_token`); the libraries themselves (about 0.5 GB) come on top.
    Time is that of one micro-batch, forwards and backwards after a first one that is not counted, scaled to all
    tokens; tokens whose activations are not kept pass forwards once more. Held-out items pass forwards.

    Raises:
        LlmembError: the weights alone do not fit into memory.
    """
    scft = settings.scft
    items = read_items(workspace)
    device = pick_device(scft.device)
    _check_room(settings, device, report)
    trainer = make_trainer(items, settings, report, device, ALONE)
    train, held_out = split_items(len(items), scft, settings.seed)
    per_epoch, steps = steps_per_epoch(scft, len(train)), total_steps(scft, len(train))
    counted = min(per_epoch, COUNTED_STEPS)
    lengths = [[len(row) for row in _step_tokens(trainer, train, step)] for step in range(counted)]
    tokens = sum(map(sum, lengths)) / counted
    example = lengths[0]
    micro = trainer.micro
    batches = micro.split(example)
    sizes = [max(example[batch]) * len(example[batch]) for batch in batches]
    kept = micro.kept(example, batches)
    held = sum(sizes[:kept]) + max(sizes[kept:], default=0)
    there_and_back, there = _measure(trainer, _step_tokens(trainer, train, 0)[batches[len(batches) // 2]])
    passes = sum(sizes) * there_and_back + sum(sizes[kept:]) * there
    validations = 0 if len(held_out) < 2 else 2 + (steps - 1) // (scft.validate_every or max(steps // 10, 1))
    per_validation = 2 * len(held_out) * tokens / len(example) * there
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in trainer.trained)
    memory = {
        "weights": weights,
        "lora": BYTES_PER_TRAINED * trained,
        "activations": held * bytes_per_token(trainer),
    }
    return {
        "dry_run": True,
        "model": scft.model,
        "device": device,
        "precision": str(trainer.loaded.dtype).removeprefix("torch."),
        "items": {"train": len(train), "held_out": len(held_out)},
        "parameters": {"trained": trained, "all": sum(p.numel() for p in trainer.model.parameters())},
        "tokens": {
            "per_epoch": round(tokens * per_epoch),
            "per_step": round(tokens),
            "counted_steps": counted,
            "longest": max(map(max, lengths)),
        },
        "steps": {"per_epoch": per_epoch, "total": steps},
        "micro_batches": {"per_step": len(batches), "kept": kept, "padding": 1 - sum(example) / sum(sizes)},
        "memory_mb": {name: round(size / MIB) for name, size in (memory | {"total": sum(memory.values())}).items()},
        "free_mb": round(free_bytes(device) / MIB),
        "seconds": {
            "per_step": passes,
            "validation": per_validation * validations,
            "total": passes * steps + per_validation * validations,
            "basis": f"one micro-batch of {sizes[len(batches) // 2]} tokens, measured",
        },
    }


def _check_room(settings: Settings, device: str, report: Reporter) -> None:
    """Say that a model is too large before loading it."""
    scft = settings.scft
    folder = local_model(scft.model, report)
    try:
        sizes = read_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except BadDataError:
        return  # a family without a known layout: loading it tells
    bits = "8-bit" if scft.load_in_8bit else "4-bit" if scft.load_in_4bit else "bf16"
    needed = weight_bytes(sizes, bits, training=True)  # type: ignore[arg-type]
    if bits == "bf16" and pick_dtype(scft.precision, device) == torch.float32:
        needed *= 2
    there = free_bytes(device) * (1 if device.startswith("cuda") else 2)
    if needed > there:
        raise LlmembError(
            f"{scft.model} needs {needed / 2**30:.1f} GiB for its weights alone, {there / 2**30:.1f} GiB are free",
            hint="--load-in-8bit, --load-in-4bit, or a smaller model",
        )


def _step_tokens(trainer: Trainer, train: np.ndarray, step: int) -> list[list[int]]:
    """The tokens of the texts that a step will contrast, short ones first."""
    chosen = step_items(train, trainer.settings, trainer.seed, step)
    views = draw_views(trainer.items, chosen, trainer.settings.drop_ratio, numpy_rng(trainer.seed, "views", step))
    return sorted(trainer.tokens(views.texts), key=len)


def _measure(trainer: Trainer, texts: list[list[int]]) -> tuple[float, float]:
    """Seconds a token takes forwards and backwards, and forwards alone; the model stays as it is."""
    tokens = max(map(len, texts)) * len(texts)
    trainer.model.train()

    def both() -> None:
        trainer.embed(texts).sum().backward()

    def there() -> None:
        with torch.no_grad():
            trainer.embed(texts)

    seconds = [_seconds(work, trainer.loaded.device) / tokens for work in (both, there)]
    for parameter in trainer.trained:
        parameter.grad = None
    return seconds[0], seconds[1]


def _seconds(work: Callable[[], None], device: str) -> float:
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
