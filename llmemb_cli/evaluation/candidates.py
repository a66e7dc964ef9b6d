"""Sampled ranking: the items each test target is ranked among, drawn once and shared by all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import Ragged, SplitData, load_split
from llmemb_cli.errors import BadDataError
from llmemb_cli.pipeline import candidates_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import numpy_rng
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.store import read_tensors, write_parquet, write_tensors

FILE = "candidates.safetensors"
DRAWN_AT_ONCE = 500_000  # part of what the seed means: each block of users has a random stream of its own
ROUNDS = 4


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
        BadDataError: somebody has fewer than `negatives` other items left.
    """
    users, width = test_users(data), data.n_items + 1
    own = np.sort(_own_items(data.full_history(), users, width))
    _check_enough(data, own, users, negatives, how)
    # A training interaction drawn at random is an item drawn in proportion to its popularity.
    pool = data.train.values if how == "popularity" else np.arange(1, data.n_items + 1, dtype=np.int32)
    block = max(1, DRAWN_AT_ONCE // (negatives + 1))
    result = np.empty((len(users), negatives), dtype=np.int32)
    for start in range(0, len(users), block):
        rng = numpy_rng(seed, "candidates", how, start)
        stop = min(start + block, len(users))
        low, high = np.searchsorted(own, [start * width, stop * width])
        result[start:stop] = _draw_block(stop - start, own[low:high] - start * width, pool, width, negatives, rng)
    return result


def _draw_block(
    rows: int, own: np.ndarray, pool: np.ndarray, width: int, negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """(rows, negatives) int32 for a block of users; an item is as likely as it is frequent in `pool`."""
    result = np.zeros((rows, negatives), dtype=np.int32)
    found = np.zeros(rows, dtype=np.int64)
    short = np.arange(rows)
    drawn = np.empty((rows, 0), dtype=np.int64)
    for _ in range(ROUNDS):
        places = rng.integers(0, len(pool), size=(len(short), negatives + negatives // 8 + 4))
        drawn = np.concatenate([drawn, pool[places]], axis=1, dtype=np.int64)
        result[short], found[short] = _first_strangers(drawn, short * width, own, negatives)
        left = found[short] < negatives
        short, drawn = short[left], drawn[left]
        if not len(short):
            return result
    weights = np.bincount(pool, minlength=width)[1:].astype(np.float64)
    for row in short:
        free = weights.copy()
        free[own[np.searchsorted(own, row * width) : np.searchsorted(own, (row + 1) * width)] - row * width - 1] = 0
        free[result[row, : found[row]] - 1] = 0
        result[row, found[row] :] = _fill(free, negatives - int(found[row]), rng)
    return result


def _check_enough(data: SplitData, own: np.ndarray, users: np.ndarray, negatives: int, how: str) -> None:
    """Refuse before anything is drawn if a user has too few items left, and say how many everybody has."""
    width = data.n_items + 1
    drawable = np.ones(width, dtype=bool) if how == "uniform" else data.train_counts > 0
    drawable[0] = False
    own = own[np.diff(own, prepend=-1) > 0]
    row, item = np.divmod(own, width)
    had = np.bincount(row[drawable[item]], minlength=len(users))
    left = int(drawable.sum()) - had
    if len(users) and left.min() < negatives:
        user, least = data.user_ids[int(users[left.argmin()])], int(left.min())
        # By settings: not every command that draws candidates has flags for them.
        fewer = f"--set eval.negatives={least}, or " if least else ""
        raise BadDataError(
            f"{int((left < negatives).sum())} users have fewer than {negatives} items left to rank among; "
            f"user {user} has {least}",
            hint=f"{fewer}--set eval.protocol=full",
        )


def _first_strangers(
    drawn: np.ndarray, base: np.ndarray, own: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` different items of each row that are not the user's own, in the order of the draw.

    Args:
        drawn: (rows, m) int64 items, m at least `count`.
        base: (rows,) int64, ascending; base + item is the item's number in `own`.
        own: sorted numbers of the users' own items.

    Returns:
        (rows, count) int32, 0 where there are fewer; and how many there are, (rows,) int64.
    """
    rows, m = drawn.shape
    # Items with their place in the draw, as one number: sorting it brings repeats together, the earliest first.
    bits = m.bit_length()
    keys = np.sort((drawn << bits) | np.arange(m), axis=1)
    items = keys >> bits
    # Few draws are repeats or the user's own, so it is these that are looked for, not the others.
    refused_row, at = np.nonzero(items[:, 1:] == items[:, :-1])
    numbers = (base[:, None] + items).ravel()
    hits = np.minimum(np.searchsorted(numbers, own), numbers.size - 1)
    own_row, own_at = np.divmod(hits[numbers[hits] == own], m)
    refused = np.zeros((rows, m), dtype=bool)
    refused[refused_row, keys[refused_row, at + 1] & ((1 << bits) - 1)] = True
    refused[own_row, keys[own_row, own_at] & ((1 << bits) - 1)] = True
    found = np.minimum(m - refused.sum(axis=1), count)
    result = drawn[:, :count].astype(np.int32)
    some = np.flatnonzero(refused[:, :count].any(axis=1))
    order = np.argsort(refused[some], axis=1, kind="stable")[:, :count]
    moved = np.take_along_axis(drawn[some], order, axis=1)
    result[some] = np.where(np.arange(count) < found[some, None], moved, 0)
    return result, found


def _own_items(history: Ragged, users: np.ndarray, width: int) -> np.ndarray:
    """Every item of the users' histories, as row * width + item."""
    lengths = history.lengths()[users]
    rows = np.repeat(np.arange(len(users)), lengths)
    places = np.arange(lengths.sum()) + np.repeat(history.offsets[users] - np.cumsum(lengths) + lengths, lengths)
    return rows * width + history.values[places]


def _fill(free: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) int: distinct items drawn one after the other by the weights `free` (n_items,)."""
    # The largest keys of Gumbel-perturbed log-weights are a weighted sample without replacement.
    with np.errstate(divide="ignore"):
        keys = np.log(free) + rng.gumbel(size=len(free))
    return np.argsort(-keys, kind="stable")[:count] + 1
