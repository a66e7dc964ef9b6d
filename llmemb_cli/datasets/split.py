"""The prepared data as arrays: user sequences, targets, counts. What recommenders and evaluation read.

`data/interactions.parquet` holds one row per kept interaction, all rows of a user together and in time order,
with a `split` column: `train`, `valid` (at most one row a user), `test` (at most one) or `later` (nothing is trained
or measured on it; it is known that the user has had it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmemb_cli.errors import BadDataError
from llmemb_cli.workspace.stage import require_stage
from llmemb_cli.workspace.store import read_parquet

if TYPE_CHECKING:
    import polars as pl

PAD = 0  # the padding item; real items are 1..n_items, in the order of items.parquet


@dataclass(frozen=True)
class Ragged:
    """Rows of different length as one flat array: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: np.ndarray  # (total,) int32
    offsets: np.ndarray  # (rows + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        """(rows,) int64."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class SplitData:
    """Everything a recommender may know, split.

    Attributes:
        item_ids: (n_items,) the user's own item ids; item i of the arrays is `item_ids[i - 1]`.
        user_ids: (n_users,) the user's own user ids, in the order of the arrays' rows.
        train: training items of every user in time order, ids 1..n_items.
        valid: (n_users,) int32, the validation target, 0 where the user has none.
        test: (n_users,) int32, the test target, 0 where the user has none.
        train_counts: (n_items + 1,) int64, training interactions of every item; index 0 is the padding.
        fingerprint: of the data stage.
        timeline: everything that every user has had, in time order, where that is more than the three above: a split
            by time passes over what follows a target, before the test item too.
    """

    item_ids: pl.Series
    user_ids: pl.Series
    train: Ragged
    valid: np.ndarray
    test: np.ndarray
    train_counts: np.ndarray
    fingerprint: str
    timeline: Ragged | None = None

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    def test_history(self) -> Ragged:
        """What a model sees of every user before the test item: training items, then the validation item."""
        return _appended(self.train, self.valid)

    def before_validation(self) -> SplitData:
        """The same before the validation items came: these are to be predicted, and nothing later is known."""
        return replace(self, valid=np.zeros_like(self.valid), test=self.valid, timeline=None)

    def full_history(self) -> Ragged:
        """Everything that every user has had, the test item and what came later too, in time order."""
        return _appended(self.test_history(), self.test) if self.timeline is None else self.timeline


def load_split(data: Path) -> SplitData:
    """Read the data stage of a workspace.

    Raises:
        WrongUseError: there is no data yet.
        BadDataError: the tables do not belong together.
    """
    import polars as pl

    manifest = require_stage(data, made_by="llmemb init")
    item_ids = read_parquet(data / "items.parquet", columns=["item_id"])["item_id"]
    index = pl.DataFrame({"item_id": item_ids, "item": np.arange(1, len(item_ids) + 1, dtype=np.int32)})
    log = read_parquet(data / "interactions.parquet", columns=["user_id", "item_id", "split"]).join(
        index, on="item_id", how="left", maintain_order="left"
    )
    if log["item"].null_count():
        raise BadDataError(
            "interactions name items that items.parquet lacks", where=str(data), hint="run `llmemb run --force data`"
        )
    user = log["user_id"].rle_id().to_numpy()
    user_ids = log["user_id"].gather(np.flatnonzero(np.diff(user, prepend=-1)))
    item = log["item"].to_numpy()
    split = log["split"].cast(pl.String).to_numpy()
    n_users = len(user_ids)
    is_train, everything = split == "train", item.astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user[is_train], minlength=n_users))])
    train = Ragged(everything[is_train], offsets.astype(np.int64))
    all_offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))]).astype(np.int64)
    return SplitData(
        item_ids=item_ids,
        user_ids=user_ids,
        train=train,
        valid=_targets(item, user, split == "valid", n_users),
        test=_targets(item, user, split == "test", n_users),
        train_counts=np.bincount(train.values, minlength=len(item_ids) + 1).astype(np.int64),
        fingerprint=str(manifest["fingerprint"]),
        timeline=Ragged(everything, all_offsets) if (split == "later").any() else None,
    )


def _appended(rows: Ragged, last: np.ndarray) -> Ragged:
    """Every row with its item of `last` (rows,) at the end, where that is not 0."""
    has = last > 0
    offsets = np.concatenate([[0], np.cumsum(rows.lengths() + has)])
    values = np.empty(offsets[-1], dtype=np.int32)
    at_end = np.zeros(offsets[-1], dtype=bool)
    at_end[offsets[1:][has] - 1] = True
    values[at_end] = last[has]
    values[~at_end] = rows.values
    return Ragged(values, offsets)


def _targets(item: np.ndarray, user: np.ndarray, chosen: np.ndarray, n_users: int) -> np.ndarray:
    targets = np.zeros(n_users, dtype=np.int32)
    targets[user[chosen]] = item[chosen]
    return targets
