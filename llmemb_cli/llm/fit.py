"""The training loop of the LLM stages of other methods: Adam, batches in parts, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from llmemb_cli.checkpoint import load_checkpoint, save_checkpoint
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.errors import InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.memory import bytes_a_token, make_room, micro_batches, out_of_memory
from llmemb_cli.llm.plan import MicroBatches
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.workspace.make import keep_seconds
from llmemb_cli.workspace.stage import LOG
from llmemb_cli.workspace.store import append_jsonl


class PartOutOfMemoryError(Exception):
    """Memory ran out in a part of a batch; `lengths` are the token counts of its rows."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__("out of memory")
        self.lengths = lengths


def fit(
    label: str,
    loaded: LoadedModel,
    trained: dict[str, torch.nn.Parameter],
    lengths: np.ndarray,
    loss_of: Callable[[np.ndarray, np.ndarray], torch.Tensor],
    micro: MicroBatches,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    checkpoint_minutes: float,
    seed: int,
    work: Path,
    report: Reporter,
) -> dict[str, float]:
    """Minimise a loss over rows 0..n-1, in a new random order each epoch.

    A batch passes the model in parts of rows of similar length, whose gradients add up to those of the whole: less
    padding, and no more activations at once than fit. A checkpoint of the last step stays in `work`, for the caller
    to remove once what was trained is written. In float16 the loss is scaled, and a step that overflows is left out.
    A step that runs out of memory is made again with less at once, from then on.

    Args:
        label: names the random streams and the progress bar.
        loaded: the LLM that the loss passes through.
        trained: the parameters by name.
        lengths: (n,) int, the tokens that the model reads for each row.
        loss_of: what some rows add to the mean loss of a batch: the row numbers of the part, and of the batch.
        micro: how much passes at once; halved where memory does not suffice.

    Returns:
        first and last loss (means over the first and the last tenth of the steps), and the number of steps.

    Raises:
        InterruptedRunError: a signal came; a checkpoint is kept.
        LlmembError: the loss is not finite, or memory does not suffice for a single row.
    """
    rows = len(lengths)
    per_epoch = math.ceil(rows / batch_size)
    total = max(round(epochs * per_epoch), 1)
    optimizer = torch.optim.Adam(list(trained.values()), lr=learning_rate)
    scaler = torch.amp.GradScaler(loaded.device.split(":")[0], enabled=loaded.dtype == torch.float16)
    found = load_checkpoint(work, optimizer, work / LOG)
    step, losses = 0, []
    if found is not None:
        groups, values = found
        with torch.no_grad():
            for name, tensor in groups["trained"].items():
                trained[name].copy_(tensor)
        step, losses = values["step"], values["losses"]
        if "scaler" in values:  # checkpoints of before have none
            scaler.load_state_dict(values["scaler"])
        report.note(f"going on at step {step + 1}" if step < total else "its training is done already")
    started = saved = time.monotonic()
    with StopRequest(report) as stop, report.task(label, total, "steps", done=step) as task:
        while step < total:
            order = numpy_rng(seed, label, step // per_epoch).permutation(rows)
            at = step % per_epoch * batch_size
            draws = stream_seed(seed, label, "dropout", step)
            batch = order[at : at + batch_size]
            losses.append(_gradients(batch, lengths, loss_of, micro, scaler, optimizer, draws, report))
            scaler.step(optimizer)
            scaler.update()
            step += 1
            if not math.isfinite(losses[-1]):
                raise LlmembError(f"the loss of step {step} is not finite", hint=f"lower {label}.learning_rate")
            append_jsonl(work / LOG, {"step": step, "loss": losses[-1]})
            task.advance(1, loss=losses[-1])
            if stop.requested or step == total or time.monotonic() - saved > checkpoint_minutes * 60:
                state = {"step": step, "losses": losses, "scaler": scaler.state_dict()}
                save_checkpoint(work, {"trained": dict(trained)}, optimizer, state, work / LOG)
                saved = time.monotonic()
            if stop.requested:
                keep_seconds(work, time.monotonic() - started)
                raise InterruptedRunError("interrupted", hint="run the same command again to go on")
    tenth = max(len(losses) // 10, 1)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    return {"first": first, "last": last, "steps": float(total)}


def _gradients(
    batch: np.ndarray,
    lengths: np.ndarray,
    loss_of: Callable[[np.ndarray, np.ndarray], torch.Tensor],
    micro: MicroBatches,
    scaler: torch.amp.GradScaler,
    optimizer: torch.optim.Optimizer,
    draws: int,
    report: Reporter,
) -> float:
    """Give the parameters the gradients of a batch's mean loss, with less at once until it fits; returns the loss.

    Args:
        draws: the random seed of the batch, the same each time.
    """
    while True:
        torch.manual_seed(draws)
        optimizer.zero_grad(set_to_none=True)
        try:
            return _backward(batch, lengths, loss_of, micro, scaler)
        except PartOutOfMemoryError as error:
            failed = error.lengths
        # Here, where the error no longer holds on to what it was computing.
        make_room(micro, failed, report)


def _backward(
    batch: np.ndarray,
    lengths: np.ndarray,
    loss_of: Callable[[np.ndarray, np.ndarray], torch.Tensor],
    micro: MicroBatches,
    scaler: torch.amp.GradScaler,
) -> float:
    """Add the gradients of a batch's mean loss to the parameters, part by part; returns the loss.

    Raises:
        PartOutOfMemoryError: memory ran out; the gradients are those of the parts before.
    """
    ordered = batch[np.argsort(lengths[batch], kind="stable")]
    total = 0.0
    for part in micro.split(lengths[ordered].tolist()):
        try:
            loss = loss_of(ordered[part], batch)
            scaler.scale(loss).backward()
            total += float(loss.detach())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise PartOutOfMemoryError(lengths[ordered[part]].tolist()) from None
    return total


def fitting(
    loaded: LoadedModel, settings: ScftSettings, length: int, trained: Iterable[torch.nn.Parameter], *, lean: bool
) -> MicroBatches:
    """What passes at once of texts of at most `length` tokens, with the activations of their backward pass.

    Args:
        trained: the parameters; their gradients and Adam's two moments are made in the first step, and stay.
    """
    width = torch.finfo(loaded.dtype).bits // 8
    held = bytes_a_token(loaded.model.config, settings, width, length, lean=lean)
    later = sum(3 * parameter.numel() * parameter.element_size() for parameter in trained)
    # Of a part's activations nothing is kept for another pass.
    return replace(micro_batches(settings, held, loaded.device, later), kept_tokens=0)
