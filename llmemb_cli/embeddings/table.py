"""LLM embedding tables on disk: vectors and the ids they belong to, checked when written and when read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmemb_cli.errors import BadDataError, InterruptedRunError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.rows import RowsFile, blocks, map_rows
from llmemb_cli.workspace.stage import Stage, differs_in, require_stage
from llmemb_cli.workspace.store import atomic_path, read_json, read_parquet, write_json, write_parquet

if TYPE_CHECKING:
    import polars as pl

VECTORS = "embeddings.safetensors"
IDS = "ids.parquet"
NAME = "embeddings"
# The commands that make vectors of the LLM, by their directory.
MADE_BY = {"scft": "llmemb embed", "base": "llmemb embed --without scft"}
# What the directory of vectors made elsewhere is the result of, and how the command that makes one begins.
EXTERNAL = "vectors"
TAKE = "llmemb embed --vectors FILE --name"
# How many shards of a table are on the disk, while it is being filled.
DONE = "done.json"
# Items whose prompts were longer than the LLM reads.
CUT = "cut.json"
# Settings that the vectors do not depend on once they are all there.
AFTERWARDS = ("pca", "shard_items")


def made_by(kind: str) -> str:
    """The command that makes `embeddings/<kind>/`."""
    if kind in ("said", "tslrec"):
        return f"llmemb rat --method {kind}"
    return MADE_BY.get(kind) or f"{TAKE} {kind}"


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
    bad = np.concatenate([rows.start + _unusable(vectors[rows]) for rows in blocks(*vectors.shape)] or [[]])
    if len(bad):
        names = ", ".join(str(item_ids[int(i)]) for i in bad[:5])
        raise BadDataError(f"{len(bad)} vectors are zero or not finite, for items {names}", where=where)


def _unusable(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1)
    return np.flatnonzero(~np.isfinite(norms) | (norms == 0))


def open_rows(directory: Path, rows: int, width: int) -> RowsFile:
    """The vectors of a table, to be written some at a time; `finish_table` makes a table of them."""
    return RowsFile(directory / VECTORS, NAME, rows, width)


def finish_table(directory: Path, item_ids: pl.Series, where: Path | None = None) -> np.ndarray:
    """Check the vectors that were written with `open_rows` and put the ids beside them; returns the vectors, mapped.

    Args:
        where: what is named where they are at fault, if that is not the directory.

    Raises:
        BadDataError: they are not one finite, non-zero vector an item.
    """
    import polars as pl

    vectors = map_rows(directory / VECTORS, NAME)
    check_vectors(vectors, item_ids, str(where or directory))
    write_parquet(directory / IDS, pl.DataFrame({"item_id": item_ids}))
    return vectors


def fill_table(
    directory: Path,
    item_ids: pl.Series,
    width: int,
    shards: Sequence[np.ndarray],
    compute: Callable[[np.ndarray, StopRequest], np.ndarray],
    label: str,
    report: Reporter,
) -> np.ndarray:
    """Write a table shard by shard, so that a crash costs one; returns the vectors, mapped.

    `forget_progress` is called when all that follows from the vectors is written too.

    Args:
        shards: rows that are computed together, each (k,) int64; the same at every call that goes on.
        compute: the (k, width) float32 vectors of a shard; may raise InterruptedRunError itself, between its batches.
        label: what the progress bar says.

    Raises:
        InterruptedRunError: a signal came; finished shards are in `directory` and the same call goes on.
        BadDataError: as `check_vectors`.
    """
    kept = directory / DONE
    done = read_json(kept)["shards"] if kept.is_file() and (directory / VECTORS).is_file() else 0
    with (
        StopRequest(report) as stop,
        open_rows(directory, len(item_ids), width) as file,
        report.task(label, len(item_ids), "items", done=sum(map(len, shards[:done]))) as task,
    ):
        for number, rows in enumerate(shards[done:], start=done + 1):
            file.write(rows, compute(rows, stop))
            file.sync()
            write_json(kept, {"shards": number})
            task.advance(len(rows))
            if stop.requested:
                raise InterruptedRunError("interrupted", hint="run the same command again to go on")
    return finish_table(directory, item_ids)


def forget_progress(directory: Path) -> None:
    """The table is finished, and what follows from it written."""
    (directory / DONE).unlink(missing_ok=True)


def write_table(directory: Path, table: EmbeddingTable) -> None:
    """Write a table that stands in memory.

    Raises:
        BadDataError: as `check_vectors`.
    """
    with open_rows(directory, *table.vectors.shape) as file:
        for rows in blocks(*table.vectors.shape):
            file.write(np.arange(rows.start, rows.stop), table.vectors[rows])
    finish_table(directory, table.item_ids)


def keep_table(stage: Stage, work: Path, report: Reporter) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Take the table that stands in a stage's place over into `work`, where just what follows from it is to change.

    Returns:
        the vectors, mapped, and what the manifest said of them; None where they would be other ones.

    Raises:
        BadDataError: as `check_vectors`.
    """
    if not differs_in(stage, *AFTERWARDS):
        return None
    report.note(f"the vectors in {stage.path.name} are kept: what changed are settings of their PCA alone")
    for name in (VECTORS, CUT):
        if (stage.path / name).is_file():
            with atomic_path(work / name) as part:
                shutil.copyfile(stage.path / name, part)
    vectors = finish_table(work, read_ids(stage.path))
    return vectors, require_stage(stage.path, made_by=f"llmemb {stage.name}")["summary"]


def read_table(directory: Path, *, made_by: str = "llmemb embed") -> EmbeddingTable:
    """Read a table and check it again; its vectors are read from the disk as they are looked at.

    Raises:
        WrongUseError: it has not been made.
        BadDataError: it is damaged.
    """
    require_stage(directory, made_by=made_by)
    item_ids = read_ids(directory)
    vectors = map_rows(directory / VECTORS, NAME)
    check_vectors(vectors, item_ids, str(directory))
    return EmbeddingTable(item_ids, vectors)


def read_ids(directory: Path) -> pl.Series:
    """The item ids of a table, in its order."""
    return read_parquet(directory / IDS, ["item_id"])["item_id"]


def rows_for(table: EmbeddingTable, item_ids: pl.Series, where: str) -> np.ndarray:
    """The vectors of `item_ids`, in that order: (len(item_ids), d) float32.

    Raises:
        BadDataError: an item has no vector.
    """
    if len(item_ids) == len(table.item_ids) and (item_ids == table.item_ids).all():
        return table.vectors
    import polars as pl

    places = pl.DataFrame({"item_id": table.item_ids}).with_row_index("row")
    found = pl.DataFrame({"item_id": item_ids}).join(places, on="item_id", how="left", maintain_order="left")
    missing = found.filter(pl.col("row").is_null())["item_id"]
    if len(missing):
        raise BadDataError(
            f"{len(missing)} items have no embedding, for example {missing[0]}",
            where=where,
            hint="make them again: `llmemb embed` (base with --without scft) or `llmemb rat`",
        )
    return table.vectors[found["row"].to_numpy()]
