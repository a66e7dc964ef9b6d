"""CSV, TSV, JSON Lines and Parquet as text columns; a line that cannot be read is a counted reject."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmemb_cli.errors import BadDataError, WrongUseError

if TYPE_CHECKING:
    import polars as pl

LINE = "line"  # name of the column with the line a row came from


@dataclass(frozen=True)
class Reject:
    """A line that was not used, and why."""

    file: str
    line: int
    reason: str
    text: str


@dataclass
class RawTable:
    """A file's rows as text: `frame` has the columns asked for and `line` (Int64, 1-based)."""

    frame: pl.DataFrame
    rows_read: int
    rejects: list[Reject] = field(default_factory=list)


def read_table(path: Path, columns: list[str] | None = None) -> RawTable:
    """Read `columns` (all if None) of a table file as text, in the order of its lines.

    Raises:
        BadDataError: not a file, empty, damaged, or a column is missing; names the file and its columns.
    """
    kind = check_file(path)
    if kind == "parquet":
        return _read_parquet(path, columns)
    header, rows = _json_rows(path) if kind == "jsonl" else _csv_rows(path)
    wanted = header if columns is None else columns
    _require(wanted, header, path)
    return _collect(path, header, wanted, rows)


def column_names(path: Path) -> list[str]:
    """The columns of a table file.

    Raises:
        BadDataError: as `read_table`.
    """
    kind = check_file(path)
    if kind == "parquet":
        import polars as pl

        try:
            return list(pl.read_parquet_schema(path))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise BadDataError(f"not a readable Parquet file: {error}", where=str(path)) from error
    header, _ = _json_rows(path) if kind == "jsonl" else _csv_rows(path)
    return header


def check_file(path: Path) -> str:
    """What kind of table `path` is: csv, jsonl or parquet.

    Raises:
        WrongUseError: it is not there or is a directory.
        BadDataError: it is empty.
    """
    if path.is_dir():
        raise WrongUseError("a file is expected here, this is a directory", where=str(path))
    if not path.is_file():
        raise WrongUseError("no such file", where=str(path))
    if path.stat().st_size == 0:
        raise BadDataError("the file is empty", where=str(path))
    name = path.name.removesuffix(".gz").lower()
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    return "jsonl" if name.endswith((".jsonl", ".ndjson", ".json")) else "csv"


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines; bytes that are not UTF-8 become lone surrogates, for `_collect` to reject."""
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
    opened = gzip.open(path, "rb") if zipped else path.open("rb")  # noqa: SIM115
    try:
        with opened, io.TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield from text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadDataError(f"the gzip file is damaged or cut off: {error}", where=str(path)) from error


def _delimiter(path: Path, header: str) -> str:
    name = path.name.removesuffix(".gz").lower()
    if name.endswith((".tsv", ".tab", ".inter", ".item")):
        return "\t"
    return max(",\t;|", key=header.count)


def _csv_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str] | str]]]:
    first = next(_lines(path), "")
    delimiter = _delimiter(path, first)
    csv.field_size_limit(sys.maxsize)
    # In tab-separated exports a quote is a character like any other.
    if delimiter == "\t":
        reader = csv.reader(_lines(path), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(_lines(path), delimiter=delimiter)
    # RecBole's headers carry a type: `user_id:token`.
    header = [name.strip().split(":")[0] for name in next(reader, [])]
    if len(set(header)) != len(header) or not any(header):
        raise BadDataError("the first line is not a header with distinct column names", where=f"{path}, line 1")

    def rows() -> Iterator[tuple[int, list[str] | str]]:
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"unreadable line: {error}"
                continue
            if row:
                yield line, row

    return header, rows()


def _json_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str] | str]]]:
    header: dict[str, None] = {}
    for line in _lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            header.update(dict.fromkeys(map(str, record)))
    names = list(header)
    if not names:
        raise BadDataError("no line is a JSON object", where=str(path))

    def rows() -> Iterator[tuple[int, list[str] | str]]:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                yield number, f"unreadable line: not JSON ({error})"
                continue
            if not isinstance(record, dict):
                yield number, "unreadable line: not a JSON object"
                continue
            yield number, [_as_text(record.get(name)) for name in names]

    return names, rows()


def _as_text(value: Any) -> str:
    """A JSON value as readable text: lists joined by commas, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text}" for key, v in value.items() if (text := _as_text(v)))
    return str(value)


def _collect(
    path: Path, header: list[str], wanted: list[str], rows: Iterator[tuple[int, list[str] | str]]
) -> RawTable:
    import polars as pl

    places = [header.index(name) for name in wanted]
    columns: list[list[str]] = [[] for _ in wanted]
    lines: list[int] = []
    rejects: list[Reject] = []
    read = 0
    for line, row in rows:
        read += 1
        reason = row if isinstance(row, str) else _fault(row, len(header))
        if reason is not None:
            text = row if isinstance(row, str) else ",".join(row)
            rejects.append(Reject(path.name, line, reason, _printable(text)))
            continue
        lines.append(line)
        for column, place in zip(columns, places, strict=True):
            column.append(row[place].strip())
    if read == 0:
        raise BadDataError("the file has a header and no rows", where=str(path))
    data = dict(zip(wanted, columns, strict=True)) | {LINE: lines}
    frame = pl.DataFrame(data, schema=dict.fromkeys(wanted, pl.String) | {LINE: pl.Int64})
    return RawTable(_empty_to_null(frame, wanted), read, rejects)


def _fault(row: list[str], width: int) -> str | None:
    if len(row) != width:
        return f"unreadable line: {len(row)} fields where the header has {width}"
    joined = "".join(row)
    if "\x00" in joined:
        return "unreadable line: NUL byte"
    if any("\ud800" <= character <= "\udfff" for character in joined if character > "\ud7ff"):
        return "unreadable line: not UTF-8"
    return None


def _printable(text: str) -> str:
    return text[:500].encode("utf-8", "replace").decode("utf-8")


def _empty_to_null(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    import polars as pl

    return frame.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names)


def _read_parquet(path: Path, columns: list[str] | None) -> RawTable:
    import polars as pl

    try:
        names = list(pl.read_parquet_schema(path))
        _require(columns or [], names, path)
        frame = pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadDataError(f"not a readable Parquet file: {error}", where=str(path)) from error
    if frame.is_empty():
        raise BadDataError("the table has no rows", where=str(path))
    texts = [
        pl.col(name).cast(pl.List(pl.String)).list.join(", ").alias(name)
        if isinstance(dtype, pl.List)
        else pl.col(name).dt.epoch("s").cast(pl.String).alias(name)
        if isinstance(dtype, pl.Datetime)
        else pl.col(name).cast(pl.String)
        for name, dtype in frame.schema.items()
    ]
    frame = frame.select(texts).with_columns(pl.col(pl.String).str.strip_chars())
    read = len(frame)
    frame = _empty_to_null(frame, frame.columns).with_row_index(LINE, offset=1)
    return RawTable(frame.with_columns(pl.col(LINE).cast(pl.Int64)), read)


def _require(wanted: list[str], header: list[str], path: Path) -> None:
    from llmemb_cli.errors import near_match

    for name in wanted:
        if name not in header:
            close = near_match(name, header)
            raise WrongUseError(
                f"no column {name}; there are: {', '.join(header)}",
                where=str(path),
                hint=f"did you mean {close}?" if close else "name the column with its flag, see `llmemb init --help`",
            )
