"""SCFT: supervised contrastive fine-tuning of the LLM with LoRA (LLMEmb section 3.2). The loop stands in `_train`."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmemb_cli.assets.models import local_model
from llmemb_cli.checkpoint import forget_checkpoint, load_checkpoint, save_checkpoint
from llmemb_cli.config.settings import Settings
from llmemb_cli.contrastive import START_TEMPERATURE
from llmemb_cli.errors import InterruptedRunError, LlmembError, WrongUseError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.llm.adapter import save_adapter, trained_tensors, with_lora
from llmemb_cli.llm.attention import use_short_attention
from llmemb_cli.llm.fastlora import speed_up
from llmemb_cli.llm.load import load_model
from llmemb_cli.llm.memory import bytes_a_token, micro_batches
from llmemb_cli.llm.plan import MicroBatches, learning_rate, split_items, step_items, steps_per_epoch, total_steps
from llmemb_cli.llm.step import contrast, update
from llmemb_cli.llm.trainer import Items, Trainer
from llmemb_cli.llm.validate import validate
from llmemb_cli.peers import Peers, join_peers, own_device
from llmemb_cli.pipeline import scft_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.seeds import stream_seed
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, keep_seconds, run_stage
from llmemb_cli.workspace.stage import LOG, partial_path, read_manifest, require_stage, stage_state
from llmemb_cli.workspace.store import append_jsonl, write_json

# The held-out figure that the best checkpoint is chosen by: its sign makes larger better.
BEST_BY = {"mrr": 1.0, "retrieval": 1.0, "validation_loss": -1.0}


def run_scft(
    workspace: Workspace, settings: Settings, report: Reporter, force: bool = False, run: str = "default"
) -> StageResult:
    """Train the LoRA adapter of `[scft]` on the item prompts, with all processes that were started together.

    Raises:
        WrongUseError: prompts have not been made, or there are more processes than texts in a batch.
        MissingError: the model or the device is not here.
        InterruptedRunError: a signal came; a checkpoint is kept and the same call goes on.
    """
    require_stage(workspace.prompts, made_by="llmemb prompt")
    stage = scft_stage(workspace, settings, run)
    device = own_device(settings.scft.device)
    peers = join_peers(device)
    begun = False

    def build(work: Path) -> dict[str, Any]:
        nonlocal begun
        items = read_items(workspace)
        if 2 * min(settings.scft.batch_size, len(items)) < peers.size:
            raise WrongUseError(f"scft.batch_size {settings.scft.batch_size} is too small for {peers.size} processes")
        begun = True
        peers.any(True)
        return _build(make_trainer(items, settings, report, device, peers), work, report)

    try:
        if peers.rank == 0:
            if force or stage_state(stage).state != "up-to-date":
                # Before the stage is described: its manifest then says which weights it was made from.
                local_model(settings.scft.model, report)
                stage = scft_stage(workspace, settings, run)
            result = run_stage(stage, build, force=force, report=report, device=device)
            if not begun:
                peers.any(False)
        else:
            if peers.any(False):
                _build(
                    make_trainer(read_items(workspace), settings, report, device, peers), partial_path(stage), report
                )
            result = None
        peers.any(False)  # process 0 has written everything
    finally:
        peers.leave()
    if result is None:
        manifest = read_manifest(stage.path)
        if manifest is None:
            raise LlmembError("process 0 has not finished", where=str(stage.path))
        result = StageResult(False, 0.0, manifest)
    return result


def read_items(workspace: Workspace) -> Items:
    """The items with their prompts.

    Raises:
        WrongUseError: prompts have not been made.
    """
    frame, summary = read_prompts(workspace, ["parts", "prompt"])
    return Items(frame["parts"], frame["prompt"], summary["instruction"], summary["separator"])


def make_trainer(items: Items, settings: Settings, report: Reporter, device: str, peers: Peers) -> Trainer:
    """The model with fresh LoRA matrices, equal in every process, and the temperature at its start value."""
    scft = settings.scft
    loaded = load_model(scft, report, device=device)
    torch.manual_seed(stream_seed(settings.seed, "lora-init"))
    model = with_lora(loaded, scft)
    dropout = speed_up(model, scft.lora_dropout, pooled=not scft.gradient_checkpointing)
    if device == "cpu":
        use_short_attention(loaded.model)
    start = torch.tensor(math.log(scft.temperature or START_TEMPERATURE[scft.loss]), device=device)
    log_temperature = torch.nn.Parameter(start, requires_grad=scft.train_temperature)
    trained = [p for p in model.parameters() if p.requires_grad]
    trainer = Trainer(loaded, model, log_temperature, scft, settings.seed, items, MicroBatches(0, 0), peers, trained)
    trainer.dropout = dropout
    trainer.find_prefix()
    trainer.micro = micro_batches(scft, bytes_per_token(trainer), device)
    return trainer


def bytes_per_token(trainer: Trainer) -> int:
    """Bytes of activations that a token of a typical prompt leaves until its backward pass."""
    length = max(map(len, trainer.tokens(trainer.items.prompts[:256].to_list())))
    width = torch.finfo(trainer.loaded.dtype).bits // 8
    config = trainer.loaded.model.config
    return bytes_a_token(config, trainer.settings, width, length, lean=trainer.dropout is not None)


@dataclass
class State:
    """Everything a resumed training needs besides the weights; `best` and the like are held-out figures."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    skipped: int = 0
    untuned: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    best_temperature: float = 0.0
    last: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    micro_batch_size: int | str = "auto"


@dataclass
class Run:
    """A training under way."""

    trainer: Trainer
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: State
    work: Path
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def _build(trainer: Trainer, work: Path, report: Reporter) -> dict[str, Any]:
    scft = trainer.settings
    train, held_out = split_items(len(trainer.items), scft, trainer.seed)
    run = prepare(trainer, work, report)
    _train(run, train, held_out, report)
    state, temperature = run.state, trainer.temperature()
    if run.best:
        _put(trainer.model, run.best)
        temperature = state.best_temperature
    if trainer.peers.rank == 0:
        save_adapter(work, trainer.loaded, trainer.model)
        write_json(work / "temperature.json", {"temperature": temperature})
        forget_checkpoint(work)
    return {
        "model": scft.model,
        "steps": state.step,
        "epochs": state.step / steps_per_epoch(scft, len(train)),
        "batch_size": min(scft.batch_size, len(train)),
        "loss": {"name": scft.loss, "first": state.first_loss, "last": state.last_loss},
        "temperature": temperature,
        "parameters": sum(p.numel() for p in trainer.trained),
        "held_out": {
            "items": len(held_out),
            "before": state.untuned,
            "after": state.best or state.last,
            "last": state.last,
            "best_by": scft.best_by,
            "best_step": state.best_step or state.step,
        },
        "precision": str(trainer.loaded.dtype).removeprefix("torch."),
        "processes": trainer.peers.size,
        "skipped_steps": state.skipped,
    }


def prepare(trainer: Trainer, work: Path, report: Reporter) -> Run:
    """Optimizer and gradient scaler, at the beginning or where the last checkpoint was written."""
    settings = trainer.settings
    groups = [{"params": trainer.trained, "weight_decay": settings.weight_decay}]
    if settings.train_temperature:
        groups.append({"params": [trainer.log_temperature], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    kind = trainer.loaded.device.split(":")[0]
    scaler = torch.amp.GradScaler(kind, enabled=trainer.loaded.dtype == torch.float16)
    run = Run(trainer, optimizer, scaler, State(), work)
    # Only process 0 may cut the log back to the checkpoint.
    found = load_checkpoint(work, optimizer, work / (LOG if trainer.peers.rank == 0 else ".none"))
    if found is None:
        return run
    groups_found, values = found
    _put(trainer.model, groups_found["lora"])
    with torch.no_grad():
        trainer.log_temperature.copy_(groups_found["temperature"]["log"][0])
    run.best = groups_found.get("best", {})
    scaler.load_state_dict(values.pop("scaler"))
    run.state = State(**values)
    if run.state.micro_batch_size == settings.micro_batch_size:
        # What memory sufficed for, unless another size was asked for meanwhile.
        trainer.micro.rows, trainer.micro.tokens = run.state.rows, run.state.tokens
    report.note(f"going on at step {run.state.step + 1}")
    return run


def _train(run: Run, train: np.ndarray, held_out: np.ndarray, report: Reporter) -> None:
    trainer, state, settings, work = run.trainer, run.state, run.trainer.settings, run.work
    total = total_steps(settings, len(train))
    every = settings.validate_every or max(total // 10, 1)
    first = trainer.peers.rank == 0
    started = saved = time.monotonic()
    trainer.model.train()
    with StopRequest(report) as stop, report.task("scft", total, "steps", done=state.step) as task:
        if state.step == 0 and not state.untuned:
            state.untuned = validate(trainer, held_out, report)
            _log(run, {"step": 0, **state.untuned})
            task.row(_shown({"step": 0, **state.untuned}))
        while state.step < total:
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(settings, state.step, total)
            loss = contrast(
                trainer, step_items(train, settings, trainer.seed, state.step), state.step, run.scaler, report
            )
            updated = update(trainer, run.optimizer, run.scaler)
            state.step += 1
            state.skipped += not updated
            state.first_loss = loss if state.first_loss is None else state.first_loss
            state.last_loss = loss
            record = {"step": state.step, "loss": loss, "temperature": trainer.temperature()}
            if state.step % every == 0 or state.step == total:
                state.last = validate(trainer, held_out, report)
                _keep_best(run)
                record |= state.last
                task.row(_shown(record), best=state.best_step == state.step)
            _log(run, record)
            task.advance(1, loss=loss)
            stopping = trainer.peers.any(stop.requested)
            due = time.monotonic() - saved > settings.checkpoint_minutes * 60 or (
                settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0
            )
            if first and (due or stopping):
                _save(run)
                saved = time.monotonic()
            if stopping:
                if first:
                    keep_seconds(work, time.monotonic() - started)
                raise InterruptedRunError("interrupted", hint="run the same command again to go on")
    if (
        first
        and state.best
        and state.best[settings.best_by] * BEST_BY[settings.best_by]
        < (state.untuned[settings.best_by] * BEST_BY[settings.best_by])
    ):
        report.warn(
            f"no checkpoint finds held-out items better than the untuned model ({settings.best_by}); "
            "train longer, or with a lower scft.learning_rate"
        )


def _keep_best(run: Run) -> None:
    """Remember the weights if they find held-out items better than all before (step 0 does not count)."""
    name = run.trainer.settings.best_by
    state = run.state
    if name not in state.last:
        return
    if not state.best or (state.last[name] - state.best[name]) * BEST_BY[name] > 0:
        state.best, state.best_step = dict(state.last), state.step
        state.best_temperature = run.trainer.temperature()
        run.best = {name: tensor.clone() for name, tensor in trained_tensors(run.trainer.model).items()}


def _shown(record: dict[str, Any]) -> dict[str, str]:
    """A validation as a row of the table on a terminal."""
    digits = {"loss": "loss", "retrieval": "found first", "mrr": "MRR", "alignment": "alignment"}
    digits |= {"uniformity": "uniformity"}
    figures = {name: f"{record[key]:.4f}" if key in record else "" for key, name in digits.items()}
    return {"step": str(record["step"])} | figures


def _log(run: Run, record: dict[str, Any]) -> None:
    if run.trainer.peers.rank == 0:
        append_jsonl(run.work / LOG, record)


def _save(run: Run) -> None:
    trainer = run.trainer
    run.state.rows, run.state.tokens = trainer.micro.rows, trainer.micro.tokens
    run.state.micro_batch_size = trainer.settings.micro_batch_size
    groups = {
        "lora": trained_tensors(trainer.model),
        "temperature": {"log": trainer.log_temperature.detach().reshape(1)},
        "best": run.best,
    }
    state = asdict(run.state) | {"scaler": run.scaler.state_dict()}
    save_checkpoint(run.work, groups, run.optimizer, state, run.work / LOG)


def _put(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
