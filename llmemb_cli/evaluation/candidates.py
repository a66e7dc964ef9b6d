"""Sampled ranking: the items each test target is ranked among, drawn once and shared by all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData, load_split
from llmemb_cli.errors import BadDataError
from llmemb_cli.pipeline import candidates_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, run_stage
from llmemb_cli.workspace.store import read_tensors, write_parquet, write_tensors

FILE = "candidates.safetensors"
USERS_AT_ONCE = 20_000  # part of what the seed means: each block has a random stream of its own
ROUNDS = 3


def make_candidates(workspace: Workspace, settings: Settings, report: Reporter) -> StageResult:
    """Draw the candidates of `[eval]` for every test user, unless they are there."""

    def build(work: Path) -> dict[str, Any]:
        data = load_split(workspace.data)
        chosen = settings.eval
        drawn = draw_candidates(data, chosen.negatives, chosen.candidates, chosen.candidate_seed)
        write_tensors(work / FILE, {"items": torch.from_numpy(drawn)})
        # What the numbers of the matrix mean: row r is the user of row r, item i that of number i.
        write_parquet(work / "users.parquet", pl.DataFrame({"user_id": data.user_ids.gather(test_users(data))}))
        numbers = np.arange(1, data.n_items + 1, dtype=np.int32)
        write_parquet(work / "items.parquet", pl.DataFrame({"number": numbers, "item_id": data.item_ids}))
        return {"users": len(drawn), "negatives": chosen.negatives}

    return run_stage(candidates_stage(workspace, settings), build, report=report)


def read_candidates(directory: Path) -> np.ndarray:
    """(test users, negatives) int32, in the order of `test_users`."""
    return read_tensors(directory / FILE)["items"].numpy()


def test_users(data: SplitData) -> np.ndarray:
    """(n,) int64: the users with a test item and a history to predict it from."""
    return np.flatnonzero((data.test > 0) & ((data.train.lengths() > 0) | (data.valid > 0)))


def draw_candidates(data: SplitData, negatives: int, how: str, seed: int) -> np.ndarray:
    """Distinct items that the user has never had, for every test user (LLMEmb section 4.1).

    Items are drawn one after the other, without replacement. Drawing with replacement and leaving out repeats and
    the user's own items is the same thing, and needs no table of users by items; the few rows that are still short
    after some rounds are filled exactly, from the items they have left.

    Args:
        data: the split.
        negatives: items per user.
        how: `uniform`, or `popularity`: proportional to training interactions, so never an item without any.
        seed: of the draw.

    Returns:
        (test users, negatives) int32.

    Raises:
        BadDataError: a user has not had fewer than `negatives` other items.
    """
    users = test_users(data)
    weights = data.train_counts[1:].astype(np.float64) if how == "popularity" else np.ones(data.n_items)
    result = np.empty((len(users), negatives), dtype=np.int32)
    for start in range(0, len(users), USERS_AT_ONCE):
        rng = numpy_rng(seed, "candidates", how, start)
        block = users[start : start + USERS_AT_ONCE]
        result[start : start + len(block)] = _draw_block(data, block, weights, negatives, rng)
    return result


def _draw_block(
    data: SplitData, users: np.ndarray, weights: np.ndarray, negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """(len(users), negatives) int32 for a block of users."""
    width = data.n_items + 1
    own = np.unique(_own_items(data, users, width))
    cumulative = None if (weights == weights[0]).all() else np.cumsum(weights) / weights.sum()
    result = np.zeros((len(users), negatives), dtype=np.int32)
    found = np.zeros(len(users), dtype=np.int64)
    short = np.arange(len(users))
    drawn = np.empty((len(users), 0), dtype=np.int64)
    for _ in range(ROUNDS):
        chances = rng.random((len(short), negatives + negatives // 8 + 2))
        if cumulative is None:
            items = (chances * data.n_items).astype(np.int64) + 1
        else:
            items = np.searchsorted(cumulative, chances, side="right") + 1
        drawn = np.concatenate([drawn, np.minimum(items, data.n_items)], axis=1)
        result[short], found[short] = _first_strangers(drawn, short * width, own, negatives)
        left = found[short] < negatives
        short, drawn = short[left], drawn[left]
    for row in short:
        free = weights.copy()
        free[own[own // width == row] % width - 1] = 0
        left_items = int((free > 0).sum())
        if left_items < negatives:
            raise BadDataError(
                f"user {data.user_ids[int(users[row])]} has only {left_items} items left to rank among",
                hint=f"--negatives {left_items} or fewer, or --protocol full",
            )
        free[result[row, : found[row]] - 1] = 0
        result[row, found[row] :] = _fill(free, negatives - int(found[row]), rng)
    return result


def _first_strangers(
    drawn: np.ndarray, base: np.ndarray, own: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` different items of each row that are not the user's own, in the order of the draw.

    Args:
        drawn: (rows, m) int64 items.
        base: (rows,) int64; base + item is the item's number in `own`.
        own: sorted numbers of the users' own items.

    Returns:
        (rows, count) int32, 0 where there are fewer; and how many there are, (rows,) int64.
    """
    rows, m = drawn.shape
    # Items with their place in the draw, as one number: sorting it brings repeats together, the earliest first.
    keys = np.sort(drawn * m + np.arange(m), axis=1)
    items, places = keys // m, keys % m
    numbers = (base[:, None] + items).ravel()
    at = np.searchsorted(own, numbers)
    fresh = (own[np.minimum(at, len(own) - 1)] != numbers).reshape(rows, m)
    fresh[:, 1:] &= items[:, 1:] != items[:, :-1]
    kept = np.zeros((rows, m), dtype=bool)
    np.put_along_axis(kept, places, fresh, axis=1)
    order = np.cumsum(kept, axis=1, dtype=np.int32)
    kept &= order <= count
    row, place = np.nonzero(kept)
    result = np.zeros((rows, count), dtype=np.int32)
    result[row, order[row, place] - 1] = drawn[row, place]
    return result, np.minimum(order[:, -1], count).astype(np.int64)


def _own_items(data: SplitData, users: np.ndarray, width: int) -> np.ndarray:
    """Every item a user has had, the target too, as row * width + item."""
    history = data.test_history()
    lengths = history.lengths()[users]
    rows = np.repeat(np.arange(len(users)), lengths)
    places = np.arange(lengths.sum()) + np.repeat(history.offsets[users] - np.cumsum(lengths) + lengths, lengths)
    return np.concatenate([rows * width + history.values[places], np.arange(len(users)) * width + data.test[users]])


def _fill(free: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) int: distinct items drawn one after the other by the weights `free` (n_items,)."""
    # The largest keys of Gumbel-perturbed log-weights are a weighted sample without replacement.
    with np.errstate(divide="ignore"):
        keys = np.log(free) + rng.gumbel(size=len(free))
    return np.argsort(-keys, kind="stable")[:count] + 1
