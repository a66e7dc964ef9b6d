"""SCFT: supervised contrastive fine-tuning of the LLM with LoRA (LLMEmb section 3.2). The loop stands in `_train`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmemb_cli.checkpoint import forget_checkpoint, load_checkpoint, save_checkpoint
from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.config.settings import Settings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.llm.gradcache import cached_backward
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.pooling import embed_batch, pad_tokens
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.pipeline import scft_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.prompts.template import render
from llmemb_cli.prompts.views import random_drop
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, keep_seconds, run_stage
from llmemb_cli.workspace.store import append_jsonl, write_json

LOG = "log.jsonl"
# What passes the model at once unless told: enough to fill the processor, little enough for 4 GB of memory.
AUTO_MICRO_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}


def run_scft(
    workspace: Workspace, settings: Settings, report: Reporter, force: bool = False, run: str = "default"
) -> StageResult:
    """Train the LoRA adapter of `[scft]` on the item prompts.

    Raises:
        WrongUseError: prompts have not been made.
        MissingError: the model or the device is not here.
        InterruptedRunError: a signal came; a checkpoint is kept and the same call goes on.
    """

    def build(work: Path) -> dict[str, Any]:
        frame, summary = read_prompts(workspace)
        items = Items(
            frame["parts"].to_list(), frame["prompt"].to_list(), summary["instruction"], summary["separator"]
        )
        loaded = load_model(settings.scft, report)
        return _build(loaded, items, settings, work, report)

    return run_stage(scft_stage(workspace, settings, run), build, force=force, report=report)


@dataclass(frozen=True)
class Items:
    """What SCFT knows of the items: their attribute texts and full prompts, in item order."""

    parts: list[list[str]]
    prompts: list[str]
    instruction: str
    separator: str

    def view(self, item: int, ratio: float, rng: np.random.Generator) -> str:
        """A random view of one item as text."""
        return render(self.instruction, random_drop(self.parts[item], ratio, rng), self.separator)


@dataclass
class State:
    """Everything a resumed training needs besides the weights."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    before: dict[str, float] = field(default_factory=dict)


@dataclass
class Trainer:
    """The parts a training step works on."""

    loaded: LoadedModel
    model: Any
    log_temperature: torch.nn.Parameter
    settings: ScftSettings
    seed: int
    items: Items

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut at the longest allowed."""
        encoded = self.loaded.tokenizer(texts, truncation=True, max_length=self.settings.max_tokens)
        return list(encoded["input_ids"])

    def embed(self, token_lists: list[list[int]]) -> torch.Tensor:
        """(n, d) float32 vectors of one micro-batch."""
        ids, mask = pad_tokens(token_lists, self.loaded.tokenizer.pad_token_id)
        device = self.loaded.device
        with torch.autocast(
            device.split(":")[0], dtype=self.loaded.dtype, enabled=self.loaded.dtype != torch.float32
        ):
            return embed_batch(self.model, ids.to(device), mask.to(device), self.settings.pooling)


def _build(loaded: LoadedModel, items: Items, settings: Settings, work: Path, report: Reporter) -> dict[str, Any]:
    scft = settings.scft
    torch.manual_seed(stream_seed(settings.seed, "lora-init"))
    model = _with_lora(loaded, scft)
    start = torch.tensor(math.log(scft.temperature), device=loaded.device)
    log_temperature = torch.nn.Parameter(start, requires_grad=scft.train_temperature)
    trainer = Trainer(loaded, model, log_temperature, scft, settings.seed, items)
    train, held_out = split_items(len(items.prompts), scft, settings.seed)
    state = _train(trainer, train, held_out, work, report)
    after = _validate(trainer, held_out)
    with quiet_transformers():
        # The embedding layer is not trained; asking for it would make PEFT look for the base model on the hub.
        model.save_pretrained(str(work), save_embedding_layers=False)
    (work / "README.md").unlink(missing_ok=True)
    temperature = float(log_temperature.detach().exp())
    write_json(work / "temperature.json", {"temperature": temperature})
    return {
        "model": scft.model,
        "steps": state.step,
        "epochs": state.step * scft.batch_size / len(train),
        "batch_size": min(scft.batch_size, len(train)),
        "loss": {"name": scft.loss, "first": state.first_loss, "last": state.last_loss},
        "temperature": temperature,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "held_out": {"items": len(held_out), "before": state.before, "after": after},
        "precision": str(loaded.dtype).removeprefix("torch."),
    }


def _with_lora(loaded: LoadedModel, settings: ScftSettings) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    base = loaded.model
    if settings.load_in_8bit or settings.load_in_4bit:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=settings.gradient_checkpointing)
    elif settings.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.target_modules),
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise BadDataError(
            f"LoRA does not fit this model: {str(error).splitlines()[0]}", hint="set scft.target_modules"
        ) from error


def split_items(count: int, settings: ScftSettings, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Item numbers to train on and, sorted, those held out for validation (at least two, or none)."""
    order = numpy_rng(seed, "scft-held-out").permutation(count)
    held_out = round(count * settings.validation_share)
    held_out = 0 if held_out < 2 else held_out
    if count - held_out < 2:
        raise BadDataError(f"{count} items are too few to contrast")
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def total_steps(settings: ScftSettings, train_items: int) -> int:
    """Optimizer steps of the run: `steps`, or `epochs` passes over the items."""
    per_epoch = max(train_items // min(settings.batch_size, train_items), 1)
    return settings.steps or max(round(settings.epochs * per_epoch), 1)


def step_items(train: np.ndarray, settings: ScftSettings, seed: int, step: int) -> np.ndarray:
    """The items of a step: each epoch is a new permutation, its incomplete last batch is left out."""
    size = min(settings.batch_size, len(train))
    per_epoch = max(len(train) // size, 1)
    order = numpy_rng(seed, "scft-order", step // per_epoch).permutation(train)
    at = (step % per_epoch) * size
    return order[at : at + size]


def learning_rate(settings: ScftSettings, step: int, total: int) -> float:
    """The learning rate of a step under the schedule, warm-up first."""
    warm = round(settings.warmup * total)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    done = (step - warm) / max(total - warm, 1)
    factor = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * factor


def _train(trainer: Trainer, train: np.ndarray, held_out: np.ndarray, work: Path, report: Reporter) -> State:
    settings = trainer.settings
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    groups = [{"params": trained, "weight_decay": settings.weight_decay}]
    if settings.train_temperature:
        groups.append({"params": [trainer.log_temperature], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    total = total_steps(settings, len(train))
    every = settings.validate_every or max(total // 10, 1)
    state = _resume(trainer, optimizer, work, report)
    started = saved = time.monotonic()
    trainer.model.train()
    with StopRequest() as stop, report.task("scft", total, "steps", done=state.step) as task:
        if state.step == 0 and not state.before:
            state.before = _validate(trainer, held_out)
            append_jsonl(work / LOG, {"step": 0, **state.before})
        while state.step < total:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, state.step, total)
            optimizer.zero_grad(set_to_none=True)
            loss = _step(trainer, step_items(train, settings, trainer.seed, state.step), state.step)
            if not math.isfinite(loss):
                raise LlmembError(f"the loss of step {state.step + 1} is not finite", hint="lower scft.learning_rate")
            if state.step == 0:
                _check_gradients(trainer.model)
            if settings.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            optimizer.step()
            state.step += 1
            state.first_loss = loss if state.first_loss is None else state.first_loss
            state.last_loss = loss
            record = {"step": state.step, "loss": loss, "temperature": float(trainer.log_temperature.detach().exp())}
            if state.step % every == 0 and state.step < total:
                record |= _validate(trainer, held_out)
            append_jsonl(work / LOG, record)
            task.advance(1, loss=loss)
            due = time.monotonic() - saved > settings.checkpoint_minutes * 60 or (
                settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0
            )
            if due or stop.requested:
                _save(trainer, optimizer, state, work)
                saved = time.monotonic()
            if stop.requested:
                keep_seconds(work, time.monotonic() - started)
                raise InterruptedRunError("interrupted", hint="run the same command again to go on")
    forget_checkpoint(work)
    return state


def _step(trainer: Trainer, items: np.ndarray, step: int) -> float:
    """Two fresh views of every item, one contrastive loss over all of them, gradients on the parameters."""
    settings = trainer.settings
    rng = numpy_rng(trainer.seed, "views", step)
    texts = [trainer.items.view(int(item), settings.drop_ratio, rng) for _ in range(2) for item in items]
    tokens = trainer.tokens(texts)
    # Similar lengths pass together; `place` puts the vectors back in the order of the views.
    order = np.argsort([len(row) for row in tokens], kind="stable")
    batches = micro_batches([tokens[i] for i in order], settings.micro_batch_size, trainer.loaded.device)
    place = torch.from_numpy(np.argsort(order, kind="stable")).to(trainer.loaded.device)
    names = np.array([trainer.items.prompts[int(item)] for item in items])
    same = torch.from_numpy(names[:, None] == names[None, :]).to(trainer.loaded.device)

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        left, right = vectors[place].chunk(2)
        return contrastive_loss(settings.loss, left, right, trainer.log_temperature.exp(), same)

    return cached_backward(
        batches, trainer.embed, loss_of, lambda number: stream_seed(trainer.seed, "lora-dropout", step, number)
    )


def micro_batches(token_lists: list[list[int]], size: int, device: str) -> list[list[list[int]]]:
    """Consecutive micro-batches of `size` texts, or, for 0, of as many as the device takes well."""
    if size:
        return [token_lists[at : at + size] for at in range(0, len(token_lists), size)]
    budget = AUTO_MICRO_TOKENS[device.split(":")[0]]
    batches: list[list[list[int]]] = [[]]
    for tokens in token_lists:
        if batches[-1] and len(tokens) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(tokens)
    return batches


@torch.no_grad()
def _validate(trainer: Trainer, held_out: np.ndarray) -> dict[str, float]:
    """Held-out items: how often a view's nearest other view is its own item's; alignment and uniformity.

    Alignment: mean squared distance of the two views; uniformity: log mean exp(-2 squared distance) over pairs of
    items (Wang and Isola, ICML 2020), both of normalised vectors.
    """
    if len(held_out) < 2:
        return {}
    rng = numpy_rng(trainer.seed, "validation-views")
    texts = [trainer.items.view(int(i), trainer.settings.drop_ratio, rng) for _ in range(2) for i in held_out]
    tokens = trainer.tokens(texts)
    order = np.argsort([len(row) for row in tokens], kind="stable")
    trainer.model.train(False)
    parts = [trainer.embed(b) for b in micro_batches([tokens[i] for i in order], 0, trainer.loaded.device)]
    trainer.model.train()
    vectors = torch.nn.functional.normalize(torch.cat(parts), dim=1)
    left, right = vectors[torch.from_numpy(np.argsort(order, kind="stable"))].chunk(2)
    nearest = (left @ right.T).argmax(dim=1).cpu()
    distances = torch.pdist(left.cpu())
    return {
        "retrieval": float((nearest == torch.arange(len(nearest))).float().mean()),
        "alignment": float((left - right).pow(2).sum(dim=1).mean()),
        "uniformity": float(distances.pow(2).mul(-2).exp().mean().log()),
    }


def _check_gradients(model: Any) -> None:
    """LoRA with the wrong checkpointing trains nothing without a word: look once."""
    reached = [p.grad for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    if not any(bool(gradient.abs().max() > 0) for gradient in reached):
        raise LlmembError("no gradient reaches the LoRA matrices", hint="try without gradient_checkpointing")


def _save(trainer: Trainer, optimizer: torch.optim.Optimizer, state: State, work: Path) -> None:
    groups = {
        "lora": {name: p for name, p in trainer.model.named_parameters() if p.requires_grad},
        "temperature": {"log": trainer.log_temperature.detach().reshape(1)},
    }
    save_checkpoint(work, groups, optimizer, state.__dict__, work / LOG)


def _resume(trainer: Trainer, optimizer: torch.optim.Optimizer, work: Path, report: Reporter) -> State:
    found = load_checkpoint(work, optimizer, work / LOG)
    if found is None:
        return State()
    groups, values = found
    parameters = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, tensor in groups["lora"].items():
            parameters[name].copy_(tensor)
        trainer.log_temperature.copy_(groups["temperature"]["log"][0])
    report.note(f"going on at step {values['step'] + 1}")
    return State(**values)
