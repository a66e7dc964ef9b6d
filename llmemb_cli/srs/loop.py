"""The training loop of RAT: steps, validation, early stopping, checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmemb_cli.checkpoint import forget_checkpoint, load_checkpoint, save_checkpoint
from llmemb_cli.config.backbones import BACKBONES
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.peers import Peers
from llmemb_cli.progress import Reporter
from llmemb_cli.ranking import hit_rate, ndcg
from llmemb_cli.seeds import numpy_rng, seed_torch, stream_seed
from llmemb_cli.srs.averaging import Average, averaged, start_average, update_average
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.learn import Learner, learn, make_optimizer
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import Extra, loss_name, popularity_offset
from llmemb_cli.srs.precision import float32_products
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.replay import Replay, can_replay
from llmemb_cli.srs.sequences import epoch_batches, training_rows
from llmemb_cli.srs.start_decay import table_starts
from llmemb_cli.srs.validate import validation_ranks, validation_users
from llmemb_cli.tracking import Trackers
from llmemb_cli.workspace.make import keep_seconds
from llmemb_cli.workspace.stage import LOG
from llmemb_cli.workspace.store import append_jsonl


@dataclass
class State:
    """Everything a resumed training needs besides the weights. `best` is None until something was validated.

    `seconds` are those of the epoch under way, `epoch_seconds` those of all finished ones.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    targets: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    done: bool = False
    losses: list[float] = field(default_factory=list)


@dataclass
class Training:
    """What the loop works on. Frozen LLM vectors are buffers that are not saved: a resumed run reads them anew."""

    model: Recommender
    settings: Settings
    data: SplitData
    extra: Extra | None
    run: str
    work: Path
    report: Reporter
    device: str
    peers: Peers
    start: dict[str, float]
    trackers: Trackers

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.peers.rank == 0


def train(t: Training) -> tuple[State, float, bool]:
    """Train until validation NDCG@10 has not risen for `patience` epochs; the best weights are put back.

    Without validation items all epochs are trained and the last weights stay. The checkpoint stays too, for the
    caller to remove once the weights are written.

    Returns:
        the state, the seconds of an epoch, and whether steps were recorded and replayed.

    Raises:
        BadDataError: no history is long enough to learn from.
        InterruptedRunError: a signal came; the checkpoint is written.
    """
    model, rat, seed, data = t.model, t.settings.rat, t.settings.seed, t.data
    rows = training_rows(data.train, rat.backbone)
    if not len(rows):
        raise _nothing_to_learn(rat)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, rat)
    sampler = None if loss_name(rat) in ("ce", "sce") else NegativeSampler(data.train, data.n_items)
    starts = table_starts(model, rat.start_decay)
    offset = popularity_offset(data.train, data.n_items, rat.logit_adjustment, rat.logit_adjustment_share)
    offset = None if offset is None else offset.to(t.device)
    average = start_average(trained, rat.averaging)
    validated = validation_users(data, rat.validation_users, seed)
    state, best = _resume(t, optimizer, average)
    # Apple's GPUs have no float64.
    exact = torch.float32 if t.device.startswith("mps") else torch.float64
    loss_sum = torch.tensor(state.loss_sum, dtype=exact, device=t.device)
    targets = torch.tensor(state.targets, device=t.device)
    learner = Learner(model, rat, t.extra, optimizer, trained, starts, offset, t.peers, loss_sum, targets)
    replay = Replay(learner, rows, sampler, data.n_items, t.device) if can_replay(learner, t.device) else None
    saved = clock = started = time.monotonic()
    with (
        StopRequest() as stop,
        float32_products(rat, t.device),
        t.report.task(f"rat {t.run}", rat.epochs, "epochs", done=state.epoch) as task,
    ):
        while not state.done and state.epoch < rat.epochs:
            batches = epoch_batches(len(rows), rat.batch_size, seed, state.epoch)
            if state.step == 0 and t.extra is not None:
                t.extra.start_epoch(model, state.epoch)
            model.train()
            if replay is not None:
                replay.start_epoch(batches)
            for number in range(state.step, len(batches)):
                # Streams depend on the step alone, so that a resumed run draws what an uninterrupted one draws. A GPU
                # still works on the steps before while this batch is made.
                seed_torch(stream_seed(seed, "dropout", state.epoch, number, t.peers.rank))
                if replay is not None:
                    replay.step(number)
                else:
                    rng = numpy_rng(seed, "step", state.epoch, number)
                    batch = make_batch(rows, batches[number], rat, data.n_items, sampler, rng, t.device, t.peers)
                    learn(learner, batch, state.epoch, number, len(batches), rng)
                state.step += 1
                update_average(average, trained, rat.averaging, state.epoch * len(batches) + state.step)
                stopping = t.peers.any(stop.requested)
                if t.writes and (stopping or time.monotonic() - saved > rat.checkpoint_minutes * 60):
                    state.loss_sum, state.targets, now = float(loss_sum), int(targets), time.monotonic()
                    state.seconds, clock = state.seconds + now - clock, now
                    _save(t, optimizer, state, best, average)
                    saved = time.monotonic()
                if stopping:
                    raise _interrupted(t, time.monotonic() - started)
            state.loss_sum, state.targets = float(loss_sum), int(targets)
            optimizer.zero_grad(set_to_none=True)  # room for the scores of the validation
            with averaged(average, trained):
                best, record = _end_epoch(t, validated, state, best, clock)
            clock = time.monotonic()
            loss_sum.zero_()
            targets.zero_()
            figures = {} if state.best is None else {"best": state.best}
            task.row(_shown(record), best=state.best_epoch == state.epoch)
            task.advance(1, loss=state.losses[-1], **figures)
    # A signal in the last validation: whoever trains several runs in a row must not begin the next one.
    if t.peers.any(stop.requested):
        if t.writes:
            _save(t, optimizer, state, best, average)
        raise _interrupted(t, time.monotonic() - started)
    model.load_state_dict(best)
    return state, state.epoch_seconds / max(state.epoch, 1), replay is not None


def _nothing_to_learn(rat: RatSettings) -> BadDataError:
    if BACKBONES[rat.backbone].learns == "masked":
        return BadDataError("no user has an item to train on", hint="take data with longer histories")
    return BadDataError(
        f"no user has two items to train on, and {rat.backbone} learns the next one",
        hint="take data with longer histories (leave-one-out keeps a user's last two items for validation and test), "
        "or --backbone bert4rec, which learns from one item too",
    )


def _interrupted(t: Training, seconds: float) -> InterruptedRunError:
    if t.writes:
        keep_seconds(t.work, seconds)
    return InterruptedRunError("interrupted", hint="run the same command again to go on")


def _end_epoch(
    t: Training, validated: np.ndarray, state: State, best: dict[str, torch.Tensor], clock: float
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Validate, log, and keep the best weights.

    Args:
        clock: since when the seconds of the epoch are not in `state`.

    Returns:
        the best weights, and what was logged.
    """
    mean_loss = state.loss_sum / max(state.targets, 1)
    if not np.isfinite(mean_loss):
        if t.writes:
            forget_checkpoint(t.work)  # going on from it would end the same way
        raise LlmembError(f"the loss of epoch {state.epoch + 1} is not finite", hint="lower rat.learning_rate")
    ranks = validation_ranks(t.model, t.data, validated, t.device, t.peers)
    state.losses.append(mean_loss)
    seconds = state.seconds + time.monotonic() - clock
    state.epoch_seconds += seconds
    state.epoch, state.step, state.loss_sum, state.targets, state.seconds = state.epoch + 1, 0, 0.0, 0, 0.0
    score = float(ndcg(ranks, 10).mean()) if len(ranks) else None
    record: dict[str, Any] = {"epoch": state.epoch, "loss": mean_loss, "NDCG@10": score}
    if len(ranks):
        record["HR@10"] = float(hit_rate(ranks, 10).mean())
    record["seconds"] = round(seconds, 3)
    if t.writes:
        t.trackers.log(state.epoch, {key: record.get(key) for key in ("loss", "NDCG@10", "HR@10", "seconds")})
    if state.epoch == 1:
        record["table_at_start"] = t.start
    if t.writes:
        append_jsonl(t.work / LOG, record)
    if score is None or state.best is None or score > state.best or not best:
        state.best, state.best_epoch = score, state.epoch
        best = _kept(t.model, best)
    state.done = state.epoch - state.best_epoch >= t.settings.rat.patience
    return best, record


def _kept(model: Recommender, best: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's weights, written over the ones kept before: both together would take their room twice."""
    weights = model.state_dict()
    if best.keys() != weights.keys():
        return {name: tensor.detach().clone() for name, tensor in weights.items()}
    for name, tensor in weights.items():
        best[name].copy_(tensor)
    return best


def _shown(record: dict[str, Any]) -> dict[str, str]:
    """An epoch as a row of the table on a terminal."""
    digits = {"loss": "{:.4f}", "NDCG@10": "{:.4f}", "HR@10": "{:.4f}", "seconds": "{:.1f}"}
    figures = {key: text.format(record[key]) for key, text in digits.items() if record.get(key) is not None}
    return {"epoch": str(record["epoch"])} | figures


def _save(
    t: Training, optimizer: torch.optim.Optimizer, state: State, best: dict[str, torch.Tensor], average: Average
) -> None:
    groups = {"model": t.model.state_dict(), "best": best}
    groups["average"] = {str(place): weight for place, weight in enumerate(average)}
    save_checkpoint(t.work, groups, optimizer, state.__dict__, t.work / LOG)


def _resume(t: Training, optimizer: torch.optim.Optimizer, average: Average) -> tuple[State, dict[str, torch.Tensor]]:
    """The state and best weights of the last checkpoint, or fresh ones; fills the model, optimizer and average."""
    # Only process 0 may cut the log back to the checkpoint.
    found = load_checkpoint(t.work, optimizer, t.work / (LOG if t.writes else ".none"))
    if found is None:
        return State(), {}
    groups, values = found
    t.model.load_state_dict(groups["model"])
    for place, weight in enumerate(average):
        weight.copy_(groups["average"][str(place)])
    state = State(**values)
    t.report.note(f"going on at epoch {state.epoch + 1}, step {state.step}")
    return state, groups.get("best", {})
