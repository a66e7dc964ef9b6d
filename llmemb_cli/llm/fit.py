"""The training loop of the LLM stages of other methods: Adam, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from llmemb_cli.checkpoint import load_checkpoint, save_checkpoint
from llmemb_cli.errors import InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.workspace.stage import keep_seconds
from llmemb_cli.workspace.store import append_jsonl

LOG = "log.jsonl"


def fit(
    label: str,
    trained: dict[str, torch.nn.Parameter],
    rows: int,
    loss_of: Callable[[np.ndarray], torch.Tensor],
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    checkpoint_minutes: float,
    seed: int,
    work: Path,
    report: Reporter,
) -> dict[str, float]:
    """Minimise `loss_of` over rows 0..rows-1, in a new random order each epoch.

    A checkpoint of the last step stays in `work`, for the caller to remove once what was trained is written.

    Args:
        label: names the random streams and the progress bar.
        trained: the parameters by name.
        loss_of: the mean loss of a batch, given its row numbers.

    Returns:
        first and last loss (means over the first and the last tenth of the steps), and the number of steps.

    Raises:
        InterruptedRunError: a signal came; a checkpoint is kept.
        LlmembError: the loss is not finite.
    """
    per_epoch = math.ceil(rows / batch_size)
    total = max(round(epochs * per_epoch), 1)
    optimizer = torch.optim.Adam(list(trained.values()), lr=learning_rate)
    found = load_checkpoint(work, optimizer, work / LOG)
    step, losses = 0, []
    if found is not None:
        groups, values = found
        with torch.no_grad():
            for name, tensor in groups["trained"].items():
                trained[name].copy_(tensor)
        step, losses = values["step"], values["losses"]
        report.note(f"going on at step {step + 1}" if step < total else "its training is done already")
    started = saved = time.monotonic()
    with StopRequest(report) as stop, report.task(label, total, "steps", done=step) as task:
        while step < total:
            order = numpy_rng(seed, label, step // per_epoch).permutation(rows)
            at = step % per_epoch * batch_size
            torch.manual_seed(stream_seed(seed, label, "dropout", step))
            loss = loss_of(order[at : at + batch_size])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            if not math.isfinite(losses[-1]):
                raise LlmembError(f"the loss of step {step} is not finite", hint=f"lower {label}.learning_rate")
            append_jsonl(work / LOG, {"step": step, "loss": losses[-1]})
            task.advance(1, loss=losses[-1])
            if stop.requested or step == total or time.monotonic() - saved > checkpoint_minutes * 60:
                save_checkpoint(
                    work, {"trained": dict(trained)}, optimizer, {"step": step, "losses": losses}, work / LOG
                )
                saved = time.monotonic()
            if stop.requested:
                keep_seconds(work, time.monotonic() - started)
                raise InterruptedRunError("interrupted", hint="run the same command again to go on")
    tenth = max(len(losses) // 10, 1)
    first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    return {"first": first, "last": last, "steps": float(total)}
