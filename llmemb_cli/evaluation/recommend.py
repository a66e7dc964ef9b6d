"""The items a trained run would show: for users of the data, or for a history from elsewhere."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from llmemb_cli.datasets.split import Ragged, SplitData
from llmemb_cli.errors import WrongUseError, unknown_id
from llmemb_cli.evaluation.rank import MOST_SCORES, Scorer, score_all, state_blocks
from llmemb_cli.srs.sequences import left_padded

MOST_COMPARED = 20_000  # ids looked through for a near match
Known = Literal["full", "eval", "train"]


def known_history(data: SplitData, users: np.ndarray, how: Known) -> Ragged:
    """The histories of (n,) `users` in time order.

    Args:
        how: `full`: all there is, also what a split by time passes over; `eval`: without the test item, what
            evaluation sees; `train`: without validation and test item.
    """
    known = {"full": data.full_history, "eval": data.test_history, "train": lambda: data.train}[how]()
    return ragged([known.row(int(user)) for user in users])


def ragged(rows: list[np.ndarray]) -> Ragged:
    """Rows of item numbers as one flat array."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(np.concatenate([*rows, np.empty(0, dtype=np.int32)]).astype(np.int32), offsets)


@torch.no_grad()
def top_items(
    model: Scorer,
    histories: Ragged,
    k: int,
    *,
    filter_history: bool = True,
    batch_users: int = 512,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Each history's `k` best items and their scores, best first.

    Args:
        histories: item numbers 1..n_items, oldest first; the newest `model.max_length` are used.
        filter_history: whether items of the history (all of it) are left out.

    Returns:
        items (n, k) int32, 0 where there are fewer, or the history is empty; scores (n, k) float32, NaN there.
    """
    table, bias = model.item_table, model.item_bias
    users = np.arange(len(histories))
    lengths = histories.lengths()
    items = np.zeros((len(users), k), dtype=np.int32)
    scores = np.full((len(users), k), np.nan, dtype=np.float32)
    block = max(1, min(batch_users, MOST_SCORES // len(table)))
    for places, states in state_blocks(model, histories, users, block, device):
        scored = score_all(states, table, bias)
        if filter_history:
            seen = left_padded(histories, places, max(1, int(lengths[places].max()))).to(device)
            scored.scatter_(1, seen, -torch.inf)
        values, best = scored.topk(min(k, scored.shape[1]), dim=1)
        some = (values > -torch.inf).cpu().numpy() & (lengths[places] > 0)[:, None]
        width = best.shape[1]
        items[places, :width] = np.where(some, best.cpu().numpy(), 0)
        scores[places, :width] = np.where(some, values.float().cpu().numpy(), np.nan)
    return items, scores


def rows_of(ids: list[str], known: list[str], what: str) -> tuple[np.ndarray, list[str]]:
    """Places of `ids` in `known`, (n,) int64, and those that are not there.

    Raises:
        WrongUseError: none of them is there; names the first, and the nearest.
    """
    place = {one: row for row, one in enumerate(known)}
    missing = [one for one in ids if one not in place]
    if len(missing) == len(ids) and ids:
        more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise WrongUseError(f"no {what} {missing[0]}{more}", hint=unknown_id(missing[0], known[:MOST_COMPARED]))
    return np.array([place[one] for one in ids if one in place], dtype=np.int64), missing


def as_entries(
    names: list[str], items: np.ndarray, scores: np.ndarray, item_ids: list[str], titles: dict[str, str]
) -> list[dict[str, Any]]:
    """The `users` of the document: their lists in the user's own ids."""
    entries = []
    for name, row, values in zip(names, items.tolist(), scores.tolist(), strict=True):
        shown = [
            {"rank": place + 1, "item_id": item_ids[item - 1], "title": titles[item_ids[item - 1]], "score": value}
            for place, (item, value) in enumerate(zip(row, values, strict=True))
            if item
        ]
        entries.append({"user_id": name, "items": shown})
    return entries


def as_frame(names: list[str], items: np.ndarray, scores: np.ndarray, item_ids: pl.Series) -> pl.DataFrame:
    """The lists as a table: user_id, rank, item_id, score."""
    rows, places = np.nonzero(items)
    return pl.DataFrame(
        {
            "user_id": pl.Series(names, dtype=pl.String).gather(rows),
            "rank": places.astype(np.int32) + 1,
            "item_id": item_ids.gather(items[rows, places] - 1),
            "score": scores[rows, places],
        }
    )
