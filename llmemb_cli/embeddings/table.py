"""LLM embedding tables on disk: vectors and the ids they belong to, checked when written and when read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmemb_cli.errors import BadDataError
from llmemb_cli.workspace.stage import require_stage
from llmemb_cli.workspace.store import read_tensors, write_parquet, write_tensors

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class EmbeddingTable:
    """Vectors of items: `vectors` (n, d) float32, row r belongs to `item_ids[r]`."""

    item_ids: pl.Series
    vectors: np.ndarray


def check_vectors(vectors: np.ndarray, item_ids: pl.Series, where: str) -> None:
    """Refuse a table that is not one finite, non-zero vector an item.

    Raises:
        BadDataError: wrong row count, NaN or infinity, or an all-zero vector; names the first items.
    """
    if len(vectors) != len(item_ids):
        raise BadDataError(f"{len(vectors)} vectors for {len(item_ids)} items", where=where)
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        names = ", ".join(str(item_ids[int(i)]) for i in bad[:5])
        raise BadDataError(f"{len(bad)} vectors are zero or not finite, for items {names}", where=where)


def write_table(directory: Path, table: EmbeddingTable) -> None:
    """Write `embeddings.safetensors` and `ids.parquet` after checking them."""
    import polars as pl
    import torch

    check_vectors(table.vectors, table.item_ids, str(directory))
    write_parquet(directory / "ids.parquet", pl.DataFrame({"item_id": table.item_ids}))
    write_tensors(directory / "embeddings.safetensors", {"embeddings": torch.from_numpy(table.vectors)})


def read_table(directory: Path, *, made_by: str = "llmemb embed") -> EmbeddingTable:
    """Read a table and check it again.

    Raises:
        WrongUseError: it has not been made.
        BadDataError: it is damaged.
    """
    import polars as pl

    require_stage(directory, made_by=made_by)
    item_ids = pl.read_parquet(directory / "ids.parquet")["item_id"]
    vectors = read_tensors(directory / "embeddings.safetensors")["embeddings"].float().numpy()
    check_vectors(vectors, item_ids, str(directory))
    return EmbeddingTable(item_ids, vectors)


def rows_for(table: EmbeddingTable, item_ids: pl.Series, where: str) -> np.ndarray:
    """The vectors of `item_ids`, in that order: (len(item_ids), d) float32.

    Raises:
        BadDataError: an item has no vector.
    """
    if len(item_ids) == len(table.item_ids) and (item_ids == table.item_ids).all():
        return table.vectors
    row_of = {item: row for row, item in enumerate(table.item_ids.to_list())}
    missing = [item for item in item_ids.to_list() if item not in row_of]
    if missing:
        raise BadDataError(
            f"{len(missing)} items have no embedding, for example {missing[0]}",
            where=where,
            hint="run `llmemb embed`",
        )
    return table.vectors[[row_of[item] for item in item_ids.to_list()]]
