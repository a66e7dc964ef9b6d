"""RAT: train a backbone and its item embeddings (LLMEmb section 3.3). The loop stands in `_train`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmemb_cli import pipeline
from llmemb_cli.checkpoint import forget_checkpoint, load_checkpoint, save_checkpoint
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData, load_split
from llmemb_cli.devices import pick_device
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.progress import Reporter
from llmemb_cli.ranking import hit_rate, ndcg
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import batch_loss, loss_name
from llmemb_cli.srs.recommender import Recommender, make_embedding
from llmemb_cli.srs.sequences import epoch_batches, left_padded
from llmemb_cli.srs.validate import validation_ranks
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, keep_seconds, run_stage
from llmemb_cli.workspace.store import append_jsonl, read_tensors, write_parquet, write_tensors

LOG = "log.jsonl"


def run_rat(
    workspace: Workspace,
    settings: Settings,
    report: Reporter,
    force: bool = False,
    name: str | None = None,
    in_file: Settings | None = None,
) -> StageResult:
    """Train the run that `[rat]` and the seed describe, and first the collaborative run it aligns to.

    Args:
        name: the run's directory; default: from backbone, method and seed.
        in_file: the settings of llmemb.toml without flags; runs whose flags differ from them get a name of their own.

    Raises:
        WrongUseError: an input has not been made.
        InterruptedRunError: a signal came; a checkpoint is kept and the same call goes on.
    """
    align_run = None
    if pipeline.aligned(settings):
        collaborative = pipeline.align_settings(settings)
        align_run = pipeline.run_name(collaborative, in_file)
        run_rat(workspace, collaborative, report, name=align_run)
    run = name or pipeline.run_name(settings, in_file)

    def build(work: Path) -> dict[str, Any]:
        return _build(workspace, settings, work, align_run, report)

    stage = pipeline.rat_stage(workspace, settings, run, align_run)
    return run_stage(stage, build, force=force, report=report, device=pick_device(settings.rat.device))


@dataclass
class State:
    """Everything a resumed training needs besides the weights."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    done: bool = False
    losses: list[float] = field(default_factory=list)


def _build(
    workspace: Workspace, settings: Settings, work: Path, align_run: str | None, report: Reporter
) -> dict[str, Any]:
    import polars as pl

    rat = settings.rat
    data = load_split(workspace.data)
    torch.manual_seed(stream_seed(settings.seed, "rat-init"))
    needed = next(iter(pipeline.embeddings_needed(settings)), None)
    model = Recommender(rat, data.n_items, make_embedding(workspace, rat, data, needed))
    device = pick_device(rat.device)
    model.to(device)
    collaborative = _collaborative(workspace, align_run, data, rat.hidden_size, device)
    scale = _scale(model)
    state, seconds = _train(model, settings, data, collaborative, work, report, device)
    model.train(False)
    with torch.no_grad():
        table = model.item_table[1:].float().cpu()
    if not torch.isfinite(table).all():
        raise LlmembError("the item embeddings are not finite", hint="lower rat.learning_rate")
    write_tensors(work / "model.safetensors", model.state_dict())
    write_tensors(work / "item_embeddings.safetensors", {"item_embeddings": table})
    write_parquet(work / "ids.parquet", pl.DataFrame({"item_id": data.item_ids}))
    return {
        "method": rat.method,
        "backbone": rat.backbone,
        "seed": settings.seed,
        "without": list(rat.without),
        "loss_name": loss_name(rat),
        "negatives": rat.negatives,
        "max_length": rat.max_length,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "embedding_scale": scale,
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "best_validation": state.best,
        "loss": state.losses[-1] if state.losses else None,
        "seconds_per_epoch": seconds / max(state.epoch, 1),
        "aligned_to": align_run,
    }


def _scale(model: Recommender) -> dict[str, float]:
    """Standard deviation and mean norm of the item embeddings before training: the commonest hidden confounder."""
    with torch.no_grad():
        table = model.item_table[1:]
        return {"std": float(table.std()), "mean_norm": float(table.norm(dim=1).mean())}


def _collaborative(
    workspace: Workspace, run: str | None, data: SplitData, hidden_size: int, device: str
) -> torch.Tensor | None:
    """(n_items + 1, d) item embeddings of the run to align to, row 0 zero."""
    if run is None:
        return None
    table = read_tensors(workspace.run(run) / "item_embeddings.safetensors")["item_embeddings"]
    if table.shape != (data.n_items, hidden_size):
        raise BadDataError(f"item embeddings of {run} have another shape", where=str(workspace.run(run)))
    return torch.cat([table.new_zeros(1, hidden_size), table]).to(device)


def _train(
    model: Recommender,
    settings: Settings,
    data: SplitData,
    collaborative: torch.Tensor | None,
    work: Path,
    report: Reporter,
    device: str,
) -> tuple[State, float]:
    """Train until validation NDCG@10 has not risen for `patience` epochs; the best weights are put back."""
    rat, seed = settings.rat, settings.seed
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        trained, lr=rat.learning_rate, betas=(0.9, 0.98), weight_decay=rat.weight_decay, fused=True
    )
    sampler = NegativeSampler(data.train, data.n_items)
    # A sequence of one item has no next item to learn.
    rows = np.flatnonzero(data.train.lengths() >= (1 if model.kind == "bert4rec" else 2))
    lengths = np.minimum(data.train.lengths()[rows], rat.max_length)
    window = rat.max_length + (0 if model.kind == "bert4rec" else 1)
    state, best = _resume(work, model, optimizer, report)
    started = saved = time.monotonic()
    with (
        StopRequest() as stop,
        report.task(f"rat {rat.backbone} {rat.method}", rat.epochs, "epochs", done=state.epoch) as task,
    ):
        while not state.done and state.epoch < rat.epochs:
            model.train()
            batches = epoch_batches(lengths, rat.batch_size, seed, state.epoch)
            while state.step < len(batches):
                users = rows[batches[state.step]]
                # Streams depend on the step alone, so that a resumed run draws what an uninterrupted one draws.
                torch.manual_seed(stream_seed(seed, "dropout", state.epoch, state.step))
                rng = numpy_rng(seed, "step", state.epoch, state.step)
                sequences = left_padded(data.train, users, window)
                loss = batch_loss(model, rat, users, sequences.to(device), sampler, rng, collaborative)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                state.loss_sum += float(loss.detach())
                state.step += 1
                due = time.monotonic() - saved > rat.checkpoint_minutes * 60
                if due or stop.requested:
                    _save(work, model, optimizer, state, best)
                    saved = time.monotonic()
                if stop.requested:
                    keep_seconds(work, time.monotonic() - started)
                    raise InterruptedRunError("interrupted", hint="run the same command again to go on")
            best = _end_epoch(model, data, rat.patience, state, best, len(batches), work, device)
            task.advance(1, loss=state.losses[-1], best=state.best)
    model.load_state_dict(best)
    forget_checkpoint(work)
    return state, time.monotonic() - started


def _end_epoch(
    model: Recommender,
    data: SplitData,
    patience: int,
    state: State,
    best: dict[str, torch.Tensor],
    steps: int,
    work: Path,
    device: str,
) -> dict[str, torch.Tensor]:
    """Validate, log, and keep the best weights."""
    mean_loss = state.loss_sum / max(steps, 1)
    if not np.isfinite(mean_loss):
        raise LlmembError(f"the loss of epoch {state.epoch + 1} is not finite", hint="lower rat.learning_rate")
    ranks = validation_ranks(model, data, device)
    score = float(ndcg(ranks, 10).mean()) if len(ranks) else -mean_loss
    state.losses.append(mean_loss)
    state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
    record = {"epoch": state.epoch, "loss": mean_loss, "NDCG@10": score}
    if len(ranks):
        record["HR@10"] = float(hit_rate(ranks, 10).mean())
    append_jsonl(work / LOG, record)
    if score > state.best or not best:
        state.best, state.best_epoch = score, state.epoch
        best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state.done = state.epoch - state.best_epoch >= patience
    return best


def _save(
    work: Path, model: Recommender, optimizer: torch.optim.Optimizer, state: State, best: dict[str, torch.Tensor]
) -> None:
    groups = {"model": model.state_dict(), "best": best}
    save_checkpoint(work, groups, optimizer, state.__dict__, work / LOG)


def _resume(
    work: Path, model: Recommender, optimizer: torch.optim.Optimizer, report: Reporter
) -> tuple[State, dict[str, torch.Tensor]]:
    """The state of the last checkpoint, or a fresh one."""
    found = load_checkpoint(work, optimizer, work / LOG)
    if found is None:
        return State(), {}
    groups, values = found
    model.load_state_dict(groups["model"])
    state = State(**values)
    report.note(f"going on at epoch {state.epoch + 1}, step {state.step}")
    return state, groups.get("best", {})
