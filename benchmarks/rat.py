"""How fast recommenders train: seconds an epoch and peak memory, beside a plain loop as research code writes it.

    python benchmarks/rat.py --workspace beauty            the data of a workspace
    python benchmarks/rat.py                               made-up users, of the size of Amazon Beauty 5-core
    python benchmarks/rat.py --backbones sasrec,gru4rec,bert4rec
    python benchmarks/rat.py --million                     a million items, ten million interactions, made up
    python benchmarks/rat.py --workspace beauty --gpu      epochs a minute on a GPU, and how much of it is busy

Both train SASRec with the settings of the paper (batch 128, hidden size 128, two blocks, length 200, one negative).
`llmemb` reads random vectors of 1,536 numbers: time does not depend on their values. The plain loop pads
every sequence to the full length, draws negatives sample by sample in a Dataset, and passes every position and every
negative through the adapter; a few of its steps are measured and multiplied by the steps of an epoch. Every
measurement has a process of its own.

With a million items an epoch is extrapolated from `--steps` steps (at least 20), for a quarter, a half and all of the
interactions; `llmemb` reads vectors of 576 numbers, as SmolLM2 gives.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import made_up

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.datasets.split import Ragged, SplitData, load_split
from llmemb_cli.peers import ALONE
from llmemb_cli.seeds import numpy_rng, seed_torch, stream_seed
from llmemb_cli.srs.batch import make_batch
from llmemb_cli.srs.item_embedding import AdaptedTable, ItemEmbedding, ItemTable
from llmemb_cli.srs.learn import Learner, learn, make_optimizer
from llmemb_cli.srs.methods.align import Align
from llmemb_cli.srs.negatives import NegativeSampler
from llmemb_cli.srs.objective import loss_name
from llmemb_cli.srs.precision import float32_products, use_precision
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.srs.replay import Replay, can_replay
from llmemb_cli.srs.sequences import epoch_batches, training_rows
from llmemb_cli.srs.validate import validation_ranks, validation_users
from llmemb_cli.workspace.make import peak_memory_mb

WIDTH, SMALL_WIDTH = 1536, 576
MILLION_USERS = 1_110_000  # of made-up users: ten million interactions, two of each user held out
BATCH, HIDDEN, LENGTH, DROPOUT = 128, 128, 200, 0.5
PROFILED = 50  # steps whose kernels are summed up on a GPU


def data_of(workspace: str | None) -> SplitData:
    return load_split(Path(workspace) / "data") if workspace else made_up(22_363, 12_101)


class PlainUsers(torch.utils.data.Dataset):
    """One user at a time: padded input, targets and a negative a position that the user has not had."""

    def __init__(self, train: Ragged, n_items: int) -> None:
        self.rows = [row.tolist() for i in range(len(train)) if len(row := train.row(i)) > 1]
        self.n_items = n_items

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = self.rows[index]
        had = set(row)
        inputs, targets, negatives = (np.zeros(LENGTH, dtype=np.int64) for _ in range(3))
        following, place = row[-1], LENGTH - 1
        for item in reversed(row[:-1]):
            inputs[place], targets[place] = item, following
            drawn = random.randint(1, self.n_items)
            while drawn in had:
                drawn = random.randint(1, self.n_items)
            negatives[place] = drawn
            following, place = item, place - 1
            if place < 0:
                break
        return inputs, targets, negatives


def layers() -> tuple[nn.Module, nn.Module]:
    return nn.Linear(HIDDEN, HIDDEN), nn.Dropout(DROPOUT)


class PlainSasrec(nn.Module):
    """SASRec over padded sequences; with vectors, every embedding passes a two-layer adapter."""

    def __init__(self, n_items: int, vectors: torch.Tensor | None) -> None:
        super().__init__()
        if vectors is None:
            self.items: nn.Module = nn.Embedding(n_items + 1, HIDDEN, padding_idx=0)
        else:
            table = nn.Embedding.from_pretrained(torch.cat([torch.zeros(1, WIDTH), vectors]))
            adapter = nn.Sequential(nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH // 2, HIDDEN))
            self.items = nn.Sequential(table, adapter)
        self.positions, self.dropout = nn.Embedding(LENGTH, HIDDEN), nn.Dropout(DROPOUT)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(5))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(HIDDEN, 1, DROPOUT, batch_first=True) for _ in range(2))
        self.feeds = nn.ModuleList(nn.Sequential(*layers(), nn.ReLU(), *layers()) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        real = (inputs > 0)[:, :, None]
        x = self.dropout(self.items(inputs) * math.sqrt(HIDDEN) + self.positions(torch.arange(LENGTH))) * real
        later = ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        for number in range(2):
            query = self.norms[2 * number](x)
            attended, _ = self.attentions[number](query, x, x, attn_mask=later)
            fed = self.norms[2 * number + 1](query + attended)
            x = (fed + self.feeds[number](fed)) * real
        return self.norms[4](x)


def plain(workspace: str | None, method: str, steps: int) -> tuple[float, int]:
    """Seconds an epoch, extrapolated from `steps` steps, and peak memory in MiB."""
    data = data_of(workspace)
    torch.manual_seed(0)
    vectors = torch.randn(data.n_items, WIDTH) if method == "llmemb" else None
    collaborative = torch.randn(data.n_items + 1, HIDDEN)
    model = PlainSasrec(data.n_items, vectors)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3, betas=(0.9, 0.98))
    users = PlainUsers(data.train, data.n_items)
    loader = torch.utils.data.DataLoader(users, BATCH, shuffle=True)
    criterion = nn.BCEWithLogitsLoss()
    started = 0.0
    for step, (inputs, targets, negatives) in enumerate(loader):
        if step == 1:
            started = time.perf_counter()
        states = model(inputs)
        wanted = targets > 0
        positive = (states * model.items(targets)).sum(dim=-1)[wanted]
        negative = (states * model.items(negatives)).sum(dim=-1)[wanted]
        loss = criterion(positive, torch.ones_like(positive)) + criterion(negative, torch.zeros_like(negative))
        if vectors is not None:
            present = torch.unique(inputs[inputs > 0])
            loss = loss + 0.01 * contrastive_loss(
                "infonce", model.items(present), collaborative[present], torch.tensor(2.0)
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == steps:
            break
    return (time.perf_counter() - started) / steps * math.ceil(len(users) / BATCH), peak_memory_mb()


@dataclass
class Measured:
    """Of an epoch: seconds of training and of validation, peak memory in MiB, the share a GPU is busy in training."""

    seconds: float
    memory: int
    busy: float = 0.0
    validation: float = 0.0


def ours(
    data_source: str | int | None,
    method: str,
    backbone: str,
    width: int,
    steps: int,
    device: str,
    recorded: bool = True,
) -> Measured:
    """An epoch of `llmemb rat`.

    Args:
        data_source: a workspace, or how many users to make up among a million items, or None for a small made-up set.
        steps: how many are measured and multiplied by the steps of an epoch; 0: a whole epoch. A quarter as many, or
            of an epoch, warm up; on a GPU two epochs, in which it meets all shapes of batches.
        recorded: on a GPU, replay steps that were recorded.
    """
    data = made_up(data_source, 1_000_000) if isinstance(data_source, int) else data_of(data_source)
    torch.manual_seed(0)
    settings = RatSettings(
        backbone=backbone, method=method, hidden_size=HIDDEN, max_length=LENGTH, dropout=DROPOUT, replay=recorded
    )
    embedding: ItemEmbedding = (
        ItemTable(data.n_items, HIDDEN)
        if method == "none"
        else AdaptedTable(torch.randn(data.n_items, width), HIDDEN)
    )
    model = Recommender(settings, data.n_items, embedding)
    use_precision(model, settings, device)
    model.to(device)
    extra = Align(settings, torch.randn(data.n_items, HIDDEN, device=device)) if method == "llmemb" else None
    trained = [p for p in model.parameters() if p.requires_grad]
    sums = torch.tensor(0.0, dtype=torch.float64, device=device), torch.tensor(0, device=device)
    learner = Learner(model, settings, extra, make_optimizer(trained, settings), trained, [], None, ALONE, *sums)
    sampler = None if loss_name(settings) == "ce" else NegativeSampler(data.train, data.n_items)
    rows = training_rows(data.train, backbone)
    whole = math.ceil(len(rows) / BATCH)
    replay = Replay(learner, rows, sampler, data.n_items, device) if can_replay(learner, device) else None

    @float32_products(settings, device)
    def epoch(number: int, most: int) -> float:
        batches = epoch_batches(len(rows), BATCH, 42, number)[:most]
        model.train()
        started = time.perf_counter()
        if replay is not None:
            replay.start_epoch(batches)
        for step, chosen in enumerate(batches):
            seed_torch(stream_seed(42, "dropout", number, step, 0))
            if replay is not None:
                replay.step(step)
                continue
            rng = numpy_rng(42, "step", number, step)
            batch = make_batch(rows, chosen, settings, data.n_items, sampler, rng, device)
            learn(learner, batch, number, step, len(batches), rng)
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / len(batches) * whole

    measured = min(steps or whole, whole)
    if device == "cpu":
        epoch(0, max(measured // 4, 1))
        return Measured(epoch(1, measured), peak_memory_mb())
    epoch(0, measured)
    epoch(1, measured)
    seconds, some = epoch(2, measured), min(measured, PROFILED)
    users = validation_users(data, 0, 42)
    validation_ranks(model, data, users, device)
    started = time.perf_counter()
    validation_ranks(model, data, users, device)
    validation = time.perf_counter() - started
    busy = busy_seconds(lambda: epoch(3, some)) / some / (seconds / whole)
    return Measured(seconds, peak_memory_mb(), busy, validation)


def busy_seconds(run: Callable[[], object]) -> float:
    """How long the GPU computes or copies in `run`; the profiler slows down what launches, not what computes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        run()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def alone(function: Callable[..., Any], *args: object) -> Any:
    """Call in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def million(steps: int) -> None:
    """A million items; 2.5, 5 and 10 million interactions: the cost of an epoch should follow them."""
    for method in ("none", "llmemb"):
        for share in (4, 2, 1):
            found = alone(ours, MILLION_USERS // share, method, "sasrec", SMALL_WIDTH, max(steps, 20), "cpu")
            interactions = 10 / share
            print(
                f"{method:8} {interactions:4.1f} million interactions {found.seconds / 60:6.1f} min (extrapolated), "
                f"{found.seconds / interactions:6.1f} s a million, {found.memory:6,} MiB",
                flush=True,
            )


def on_gpu(workspace: str | None, backbones: list[str]) -> None:
    """Epochs a minute and how busy the GPU is, with recorded steps and without."""
    print(torch.cuda.get_device_name())
    for backbone in backbones:
        for method in ("none", "llmemb"):
            for recorded in (True, False):
                found = alone(ours, workspace, method, backbone, WIDTH, 0, "cuda", recorded)
                print(
                    f"{method:8} {backbone:9} {'recorded' if recorded else 'launched'} {60 / found.seconds:8.1f} "
                    f"epochs a minute, GPU busy {found.busy:.0%}, a validation {found.validation:.2f} s",
                    flush=True,
                )


def beside_plain(workspace: str | None, backbones: list[str], steps: int) -> None:
    """Seconds of an epoch, ours and a plain loop's."""
    print(f"{torch.get_num_threads()} threads; an epoch of {workspace or 'made-up data'}")
    for method in ("none", "llmemb"):
        slow = None
        if steps:
            slow, memory = alone(plain, workspace, method, steps)
            print(f"{method:8} sasrec    plain loop {slow:8.1f} s, {memory:6,} MiB, {steps} steps", flush=True)
        for backbone in backbones:
            found = alone(ours, workspace, method, backbone, WIDTH, 0, "cpu")
            times = f", {slow / found.seconds:.0f} times as fast" if slow and backbone == "sasrec" else ""
            print(
                f"{method:8} {backbone:9} llmemb    {found.seconds:8.1f} s, {found.memory:6,} MiB{times}", flush=True
            )


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", help="directory of a workspace; default: made-up data")
    parser.add_argument("--backbones", default="sasrec")
    parser.add_argument(
        "--steps", type=int, default=4, help="steps of the plain loop, or of --million, that are measured"
    )
    parser.add_argument("--million", action="store_true", help="a million items")
    parser.add_argument("--gpu", action="store_true", help="on a CUDA device")
    chosen = parser.parse_args()
    if chosen.million:
        million(chosen.steps)
    elif chosen.gpu:
        on_gpu(chosen.workspace, chosen.backbones.split(","))
    else:
        beside_plain(chosen.workspace, chosen.backbones.split(","), chosen.steps)


if __name__ == "__main__":
    main()
