"""Tables of any kind as text columns, in blocks: CSV, TSV, JSON Lines, Parquet.

A line that cannot be read is a counted reject, never an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmemb_cli.datasets.readers.chunks import LINE, Batch, Reject, printable
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import BadDataError, WrongUseError, near_match
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.store import parquet_faults

if TYPE_CHECKING:
    import polars as pl

PARQUET_ROWS = 1 << 20
SAMPLE_RECORDS = 10_000


@dataclass
class RawTable:
    """A file's rows as text: `frame` has the columns asked for and `LINE` (Int64, 1-based)."""

    frame: pl.DataFrame
    rows_read: int
    rejects: list[Reject] = field(default_factory=list)


def read_table(
    file: Path | RawFile, columns: list[str] | None = None, *, encoding: str = "utf-8", report: Reporter | None = None
) -> RawTable:
    """Read `columns` (all if None) of a table file as text, in the order of its lines.

    Raises:
        WrongUseError, BadDataError: as `scan_table`; also a table without rows.
    """
    import polars as pl

    if isinstance(file, Path):
        file = plain_file(file)
    if columns is None:
        columns = column_names(file, encoding=encoding)
    batches = list(scan_table(file, columns, encoding=encoding, report=report))
    rows_read = sum(batch.rows_read for batch in batches)
    if rows_read == 0:
        raise BadDataError("the file has a header and no rows", where=file.where)
    frame = pl.concat([batch.frame for batch in batches])
    return RawTable(frame, rows_read, [reject for batch in batches for reject in batch.rejects])


def scan_table(
    file: Path | RawFile, columns: list[str], *, encoding: str = "utf-8", report: Reporter | None = None
) -> Iterator[Batch]:
    """`columns` of a table file as text, in blocks of bounded size, in the order of its lines.

    Raises:
        WrongUseError: not a file, or a column is missing; names its columns and the nearest.
        BadDataError: empty or damaged, or a column's name holds a NUL byte, as only our own do.
    """
    if isinstance(file, Path):
        file = plain_file(file)
    report = report or Reporter()
    if any("\x00" in name for name in columns):
        raise BadDataError("the name of a column holds a NUL byte", where=file.where)
    kind = table_kind(file)
    if kind == "parquet":
        _require(columns, column_names(file), file)
        return _scan_parquet(file, columns)
    if kind == "jsonl":
        from llmemb_cli.datasets.readers.jsonl import json_keys, scan_jsonl

        if any(name not in json_keys(file, Reporter(), SAMPLE_RECORDS) for name in columns):
            _require(columns, json_keys(file, Reporter()), file)
        return scan_jsonl(file, columns, report)
    from llmemb_cli.datasets.readers.delimited import scan_delimited, sniff

    layout = sniff(file, encoding)
    _require(columns, layout.columns, file)
    return scan_delimited(file, columns, layout, report)


def column_names(file: Path | RawFile, *, encoding: str = "utf-8", sample: bool = False) -> list[str]:
    """The columns of a table file; of JSON Lines with `sample` those of its first records.

    Raises:
        WrongUseError, BadDataError: as `scan_table`.
    """
    if isinstance(file, Path):
        file = plain_file(file)
    kind = table_kind(file)
    if kind == "parquet":
        import polars as pl

        with parquet_faults(file.where):
            return list(pl.read_parquet_schema(file.path))
    if kind == "jsonl":
        from llmemb_cli.datasets.readers.jsonl import json_keys

        return json_keys(file, Reporter(), SAMPLE_RECORDS if sample else None)
    from llmemb_cli.datasets.readers.delimited import sniff

    return sniff(file, encoding).columns


def table_kind(file: RawFile) -> str:
    """What kind of table a file's name says it is: csv, jsonl or parquet."""
    name = file.name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    return "jsonl" if name.endswith((".jsonl", ".ndjson", ".json")) else "csv"


def _scan_parquet(file: RawFile, columns: list[str]) -> Iterator[Batch]:
    import polars as pl

    with parquet_faults(file.where):
        rows = pl.scan_parquet(file.path).select(pl.len()).collect().item()
        if rows == 0:
            raise BadDataError("the table has no rows", where=file.where)
        for start in range(0, rows, PARQUET_ROWS):
            frame = pl.scan_parquet(file.path).select(columns).slice(start, PARQUET_ROWS).collect()
            yield _as_batch(frame, start + 1, file)


def _as_batch(frame: pl.DataFrame, first: int, file: RawFile) -> Batch:
    import polars as pl

    from llmemb_cli.datasets.readers.jsonl import clean, text_fault

    columns = frame.columns
    lines = pl.int_range(first, first + len(frame), dtype=pl.Int64, eager=True)
    texts = frame.select(
        _text(pl.col(name), kind, f"{file.where}, column {name}").alias(name) for name, kind in frame.schema.items()
    )
    texts = clean(texts, columns).with_columns(lines.alias(LINE))
    bad = pl.any_horizontal(pl.col(columns).str.contains("\x00", literal=True).fill_null(False))
    reason = text_fault("\x00") or ""
    rejects = [
        Reject(file.name, row[LINE], reason, printable(", ".join(filter(None, map(row.get, columns)))))
        for row in texts.filter(bad).iter_rows(named=True)
    ]
    return Batch(texts.filter(~bad), len(frame), rejects)


def _text(value: pl.Expr, kind: Any, where: str) -> pl.Expr:
    """A value of polars type `kind` as the text it would be read as from JSON Lines.

    Raises:
        BadDataError: values of this type have no text.
    """
    import polars as pl

    if kind.is_float():
        # pandas makes a column of ids with one missing a column of floats, and the missing one NaN.
        value = value.fill_nan(None)
        whole = (value == value.floor()) & (value.abs() < 2**53)
        return (
            pl.when(whole).then(value.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(value.cast(pl.String))
        )
    if kind == pl.Boolean:
        return pl.when(value).then(pl.lit("yes")).when(~value).then(pl.lit("no"))
    if isinstance(kind, pl.Datetime):
        # Seconds; with what comes after the point where there is something, as the order may hang on it.
        moment = value.dt.epoch("us")
        whole = moment % 1_000_000 == 0
        return (
            pl.when(whole).then((moment // 1_000_000).cast(pl.String)).otherwise((moment / 1_000_000).cast(pl.String))
        )
    if isinstance(kind, pl.Array):
        return _text(value.arr.to_list(), pl.List(kind.inner), where)
    if isinstance(kind, pl.List):
        return value.list.eval(_text(pl.element(), kind.inner, where)).list.join(", ")
    if isinstance(kind, pl.Struct):
        texts = {field.name: _text(value.struct.field(field.name), field.dtype, where) for field in kind.fields}
        said = [pl.when(text != "").then(pl.lit(f"{name}: ") + text) for name, text in texts.items()]
        return pl.concat_str(said, separator=", ", ignore_nulls=True) if said else pl.lit(None, pl.String)
    if isinstance(kind, pl.Duration | pl.Object):
        raise BadDataError(f"values of type {kind} are not understood", where=where, hint="make it a column of text")
    return value.cast(pl.String)


def _require(wanted: list[str], header: list[str], file: RawFile) -> None:
    for name in wanted:
        if name not in header:
            close = near_match(name, header)
            raise WrongUseError(
                f"no column {name}; there are: {', '.join(header)}",
                where=file.where,
                hint=f"did you mean {close}?" if close else "name the column with its flag, see `llmemb init --help`",
            )


__all__ = ["LINE", "Batch", "RawTable", "Reject", "column_names", "read_table", "scan_table", "table_kind"]
