"""JSON Lines as text columns: polars for blocks that are in order, Python line by line for those that are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import polars as pl

from llmemb_cli.datasets.readers.chunks import LINE, Batch, Chunk, Reject, in_order, line_chunks, printable
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import BadDataError
from llmemb_cli.progress import Reporter

Record = dict[str, Any]
Parse = Callable[[str], Record]
MAX_DEPTH = 100  # lists in lists; no record is nested deeper
PIECE = 512 << 10  # bytes; a smaller block with a damaged line is read line by line
# polars writes nested values and booleans in its own way, and an unpaired surrogate as it likes.
_ODD = r"^[\[{]|^true$|^false$|[\x00\x{FFFD}]"
_UNTIDY = r"^$|^\s|\s$"


def scan_jsonl(file: RawFile, columns: list[str], report: Reporter) -> Iterator[Batch]:
    """The keys `columns` of every record as text, in blocks.

    A key is taken wherever it first appears: the columns are the schema, nothing is inferred. Values that are
    not text become text as `as_text` writes them. Every line that is not blank counts as a row.
    """
    return in_order(lambda chunk: _batch(chunk, columns, file.name), line_chunks(file, report))


def json_records(file: RawFile, parse: Parse, report: Reporter) -> Iterator[tuple[int, Record | Reject]]:
    """Every record with its line, or why it is none; for catalogues, whose records are nested."""
    for chunk in line_chunks(file, report):
        yield from _records(chunk, parse, file.name)


def parse_object(text: str) -> Record:
    """One line of JSON Lines.

    Raises:
        ValueError: it is not a JSON object; says where.
    """
    try:
        record = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _first_of_each(pairs: list[tuple[str, Any]]) -> Record:
    """A JSON object; of a key written twice the first counts, as with polars."""
    record = dict(pairs)
    return record if len(record) == len(pairs) else dict(reversed(pairs))


_DECODER = json.JSONDecoder(object_pairs_hook=_first_of_each)


def json_keys(file: RawFile, report: Reporter, limit: int | None = None) -> list[str]:
    """The keys of the first `limit` records (of all if None) in order of appearance.

    Raises:
        BadDataError: no line is a JSON object.
    """
    keys: dict[str, None] = {}
    for number, (_, record) in enumerate(json_records(file, parse_object, report)):
        if isinstance(record, dict):
            keys.update(dict.fromkeys(map(str, record)))
        if limit is not None and number >= limit and keys:
            break
    if not keys:
        hint = "one object a line is expected; of a list of objects, `jq -c '.[]' FILE > FILE.jsonl` makes that"
        raise BadDataError("no line is a JSON object", where=file.where, hint=hint)
    return list(keys)


def as_text(value: Any, depth: int = 0) -> str:
    """A JSON value as readable text: lists joined by commas, nothing for null.

    Raises:
        ValueError: it is nested deeper than any record is, or a number of more digits than Python writes.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _plain_number(value)
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return ", ".join(text for inner in value if (text := as_text(inner, depth + 1)))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text}" for key, inner in value.items() if (text := as_text(inner, depth + 1)))
    return str(value)


def _plain_number(value: float) -> str:
    """Without exponent and trailing zero, as polars has it: 5 and 5.0 are one JSON number, so they are one id."""
    text = repr(value)
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")


def _batch(chunk: Chunk, columns: list[str], name: str) -> Batch:
    if chunk.too_long or len(chunk.data) <= PIECE:
        return _piece(chunk, columns, name)
    frame = _fast(chunk, columns)
    if frame is not None:
        return Batch(frame, len(frame), [])
    # One damaged line is no reason to read thousands of others slowly.
    parts = [_piece(piece, columns, name) for piece in chunk.pieces(PIECE)]
    rejects = [reject for part in parts for reject in part.rejects]
    return Batch(pl.concat([part.frame for part in parts]), sum(part.rows_read for part in parts), rejects)


def _piece(chunk: Chunk, columns: list[str], name: str) -> Batch:
    frame = None if chunk.too_long else _fast(chunk, columns)
    return _slow(chunk, columns, name) if frame is None else Batch(frame, len(frame), [])


def _fast(chunk: Chunk, columns: list[str]) -> pl.DataFrame | None:
    """The block through polars, or None where a line of it is blank, damaged or oddly typed."""
    if chunk.looks_packed:
        return None
    try:
        frame = pl.read_ndjson(chunk.data, schema=dict.fromkeys(columns, pl.String))
    except pl.exceptions.PolarsError:
        return None
    # A line is a row or an error; only blank lines are neither.
    if len(frame) != chunk.lines:
        return None
    if _any(frame, columns, f"{_ODD}|{_UNTIDY}"):
        if _any(frame, columns, _ODD):
            return None
        frame = clean(frame, columns)
    lines = pl.int_range(chunk.first, chunk.first + chunk.lines, dtype=pl.Int64, eager=True)
    return frame.with_columns(lines.alias(LINE))


def _any(frame: pl.DataFrame, columns: list[str], pattern: str) -> bool:
    return bool(frame.select(pl.any_horizontal(pl.col(columns).str.contains(pattern).any())).item())


def clean(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Without blanks around values; empty values are null."""
    stripped = [pl.col(name).str.strip_chars() for name in columns]
    return frame.select(
        pl.when(text != "").then(text).alias(name) for name, text in zip(columns, stripped, strict=True)
    )


def _slow(chunk: Chunk, columns: list[str], name: str) -> Batch:
    rows: list[list[str]] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    for line, record in _records(chunk, parse_object, name):
        if isinstance(record, Reject):
            rejects.append(record)
            continue
        try:
            values = [as_text(record.get(column)) for column in columns]
        except ValueError as error:
            rejects.append(Reject(name, line, f"unreadable line: not a record ({_brief(error)})", ""))
            continue
        if fault := text_fault("".join(values)):
            rejects.append(Reject(name, line, fault, printable(", ".join(values))))
            continue
        rows.append(values)
        lines.append(line)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    frame = clean(frame, columns).with_columns(pl.Series(LINE, lines, pl.Int64))
    return Batch(frame, len(rows) + len(rejects), rejects)


def _records(chunk: Chunk, parse: Parse, name: str) -> Iterator[tuple[int, Record | Reject]]:
    if chunk.too_long:
        yield chunk.first, Reject(name, chunk.first, "unreadable line: too long", printable(chunk.data))
        return
    for line, raw in enumerate(chunk.data.split(b"\n"), start=chunk.first):
        if not raw.strip():
            continue
        try:
            yield line, parse(raw.decode("utf-8"))
        except UnicodeDecodeError:
            yield line, Reject(name, line, "unreadable line: not UTF-8", printable(raw))
        except ValueError as error:
            yield line, Reject(name, line, f"unreadable line: not a record ({_brief(error)})", printable(raw))


def _brief(error: ValueError) -> str:
    """The kind of fault without its place, so that equal faults are counted together."""
    return re.sub(r":? ((line|at|char)\b|[(<]).*", "", str(error), flags=re.DOTALL)[:80]


def text_fault(text: str) -> str | None:
    """Why a value cannot be used as text, or None."""
    if "\x00" in text:
        return "unreadable line: NUL byte"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "unreadable line: not UTF-8"  # half of a character, written as \ud83d
    return None
