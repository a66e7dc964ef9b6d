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
    width = data.n_items + 1  # a draw is the number row * width + item
    own = _own_items(data, users, width)
    cumulative = np.cumsum(weights)
    cumulative /= cumulative[-1]
    drawn = np.empty(0, dtype=np.int64)
    short = np.arange(len(users))
    for _ in range(ROUNDS):
        count = (len(short), negatives + negatives // 8 + 2)
        items = np.searchsorted(cumulative, rng.random(count), side="right") + 1
        drawn = np.concatenate([drawn, (short[:, None] * width + items).ravel()])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        drawn = drawn[~np.isin(drawn, own, kind="sort")]
        drawn = drawn[np.argsort(drawn // width, kind="stable")]
        sizes = np.bincount(drawn // width, minlength=len(users))
        short = np.flatnonzero(sizes < negatives)
    place = np.arange(len(drawn)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    first = place < negatives
    result = np.zeros((len(users), negatives), dtype=np.int32)
    result[drawn[first] // width, place[first]] = drawn[first] % width
    for row in short:
        free = weights.copy()
        free[own[own // width == row] % width - 1] = 0
        left = int((free > 0).sum())
        if left < negatives:
            raise BadDataError(
                f"user {data.user_ids[int(users[row])]} has only {left} items left to rank among",
                hint=f"--negatives {left} or fewer, or --protocol full",
            )
        free[result[row, : sizes[row]] - 1] = 0
        result[row, sizes[row] :] = _fill(free, negatives - int(sizes[row]), rng)
    return result


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
