"""How fast evaluation is: full and sampled ranking against a plain loop, and a million items in bounded memory.

    python benchmarks/evaluate.py                          made-up users, of the size of Amazon Beauty 5-core
    python benchmarks/evaluate.py --workspace beauty       the data of a workspace

The model is an untrained SASRec with 128 numbers an item: time does not depend on the weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import Ragged, SplitData, load_split
from llmemb_cli.evaluation.candidates import draw_candidates, test_users
from llmemb_cli.evaluation.rank import full_ranking, sampled_ranks
from llmemb_cli.srs.item_embedding import ItemTable
from llmemb_cli.srs.recommender import Recommender
from llmemb_cli.workspace.make import peak_memory_mb, reset_peak_memory


def made_up(n_users: int, n_items: int, seed: int = 0) -> SplitData:
    """Users with 3 to 50 items (mean about 7), items as unequal in popularity as 1 / (place + 10)."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(3 + rng.geometric(0.25, n_users), 50)
    weights = np.cumsum(1 / (np.arange(n_items) + 10))
    items = np.searchsorted(weights, rng.random(int(lengths.sum()) + 2 * n_users) * weights[-1]).astype(np.int32) + 1
    train = Ragged(items[: lengths.sum()], np.concatenate([[0], np.cumsum(lengths)]))
    return SplitData(
        item_ids=pl.Series(range(n_items)).cast(pl.String),
        user_ids=pl.Series(range(n_users)).cast(pl.String),
        train=train,
        valid=items[lengths.sum() :][:n_users],
        test=items[lengths.sum() + n_users :],
        train_counts=np.bincount(train.values, minlength=n_items + 1).astype(np.int64),
        fingerprint="",
    )


def plain_loop(model: Recommender, data: SplitData, users: np.ndarray, negatives: int = 100) -> np.ndarray:
    """User by user: draw, score, sort twice. As evaluation loops in published recommenders do."""
    rng = np.random.default_rng(0)
    history = data.test_history()
    table = model.item_table
    ranks = []
    for user in users:
        had = {*history.row(int(user)).tolist(), int(data.test[user])}
        drawn: list[int] = []
        while len(drawn) < negatives:
            item = int(rng.integers(1, data.n_items + 1))
            if item not in had and item not in drawn:
                drawn.append(item)
        sequence = torch.zeros(1, model.max_length, dtype=torch.int64)
        row = torch.from_numpy(history.row(int(user))[-model.max_length :].astype(np.int64))
        sequence[0, model.max_length - len(row) :] = row
        scores = model.encode(sequence)[0] @ table[[int(data.test[user]), *drawn]].T
        ranks.append(int((-scores).argsort().argsort()[0]) + 1)
    return np.array(ranks)


def measure(name: str, work: Callable[[], object]) -> float:
    """Seconds of one call, printed with the peak of memory."""
    reset_peak_memory()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{name:<58} {seconds:8.2f} s   peak {peak_memory_mb():,} MB", flush=True)
    return seconds


def recommender(n_items: int) -> Recommender:
    torch.manual_seed(0)
    return Recommender(RatSettings(method="none"), n_items, ItemTable(n_items, 128)).train(False)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--loop-users", type=int, default=500, help="users the plain loop is timed on")
    parser.add_argument("--million", action="store_true", help="also rank among a million items")
    chosen = parser.parse_args()
    data = load_split(chosen.workspace / "data") if chosen.workspace else made_up(22_363, 12_101)
    users = test_users(data)
    model = recommender(data.n_items)
    print(f"{len(users):,} users, {data.n_items:,} items, SASRec d=128, {torch.get_num_threads()} threads")
    full_ranking(model, data, users[:1000])  # the first call pays for the libraries' start
    measure("full ranking, ranks alone", lambda: full_ranking(model, data, users))
    full = measure(
        "full ranking, ranks and top 10 (what `llmemb eval` does)", lambda: full_ranking(model, data, users, top=10)
    )
    drawing = measure(
        "drawing 100 candidates a user (once a workspace)", lambda: draw_candidates(data, 100, "uniform", 42)
    )
    candidates = draw_candidates(data, 100, "uniform", 42)
    sampled = measure("sampled ranking", lambda: sampled_ranks(model, data, users, candidates))
    part = np.random.default_rng(0).choice(users, size=min(chosen.loop_users, len(users)), replace=False)
    loop = measure(f"plain loop, {len(part):,} users", lambda: plain_loop(model, data, part)) * len(users) / len(part)
    print(f"plain loop for all users (extrapolated): {loop:.0f} s")
    print(f"sampled with drawing: {loop / (sampled + drawing):.0f} times faster; sampled alone: {loop / sampled:.0f}")
    print(f"sampled takes {sampled / full:.2f} of the time of full")
    if chosen.million:
        large = made_up(2_000, 1_000_000)
        large_model = recommender(large.n_items)
        measure(
            "full ranking, 2,000 users, 1,000,000 items",
            lambda: full_ranking(large_model, large, test_users(large), top=10),
        )


if __name__ == "__main__":
    main()
