"""CSV, TSV and other separated text as text columns, in blocks."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl

from llmemb_cli.datasets.readers.chunks import BOM, LINE, Batch, Chunk, Reject, in_order, line_chunks, printable
from llmemb_cli.datasets.readers.jsonl import clean, text_fault
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import BadDataError
from llmemb_cli.progress import Reporter

HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How a separated text file is written.

    Attributes:
        columns: names of the fields, in order.
        separator: between fields; more than one byte is allowed ("::").
        header_lines: lines before the first row.
        quoted: whether `"` encloses fields.
        encoding: of the text.
    """

    columns: list[str]
    separator: str
    header_lines: int = 1
    quoted: bool = True
    encoding: str = "utf-8"


def sniff(file: RawFile, encoding: str = "utf-8") -> Layout:
    """The layout of a file with a header line.

    Raises:
        BadDataError: the first line is no header of distinct names.
    """
    with file.open() as stream:
        head = stream.read(HEAD_BYTES).removeprefix(BOM).decode(encoding, "replace")
    first = head.split("\n", 1)[0]
    separator = _separator(file.name, first)
    # In tab-separated exports a quote is a character like any other.
    quoted = separator != "\t"
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=separator, quoting=_quoting(quoted))
    # RecBole's headers carry a type: `user_id:token`.
    columns = [name.strip().split(":")[0] for name in next(rows, [])]
    if len(set(columns)) != len(columns) or not any(columns):
        raise BadDataError("the first line is not a header with distinct column names", where=f"{file.where}, line 1")
    return Layout(columns, separator, rows.line_num, quoted, encoding)


def _separator(name: str, header: str) -> str:
    if name.removesuffix(".gz").lower().endswith((".tsv", ".tab", ".inter", ".item", ".user")):
        return "\t"
    return max(",\t;|", key=header.count)


def _quoting(quoted: bool) -> Literal[0, 3]:
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE


def scan_delimited(file: RawFile, columns: list[str], layout: Layout, report: Reporter) -> Iterator[Batch]:
    """The `columns` of every row as text, in blocks; a row with too few or many fields is a reject."""
    chunks = _after_header(line_chunks(file, report), layout.header_lines)
    chunks = (_normalised(chunk, layout) for chunk in chunks)
    if layout.quoted:
        chunks = _whole_rows(chunks)
    return in_order(lambda chunk: _batch(chunk, columns, layout, file.name), chunks)


def _after_header(chunks: Iterator[Chunk], lines: int) -> Iterator[Chunk]:
    for chunk in chunks:
        if lines == 0:
            yield chunk
            continue
        skipped = min(lines, chunk.lines)
        lines -= skipped
        rest = chunk.data.split(b"\n", skipped)[-1] if chunk.data.count(b"\n") >= skipped else b""
        if rest:
            yield Chunk(rest, chunk.first + skipped, chunk.lines - skipped)


def _normalised(chunk: Chunk, layout: Layout) -> Chunk:
    """In UTF-8, with line ends of one byte and a separator of one byte."""
    data = chunk.data.replace(b"\r\n", b"\n")
    if layout.encoding != "utf-8":
        data = data.decode(layout.encoding, "replace").encode("utf-8")
    if len(layout.separator) > 1:
        data = data.replace(layout.separator.encode(), b"\x1f")
    return replace(chunk, data=data)


def _whole_rows(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Blocks that end between rows, as a quoted field may hold line ends: quotes before such a place are paired.

    A file with a stray quote has no such place for long; after one further block it is cut all the same.
    """
    held: Chunk | None = None
    for chunk in chunks:
        if held is not None and not chunk.too_long:
            chunk = Chunk(held.data + chunk.data, held.first, held.lines + chunk.lines)
            merged, held = True, None
        else:
            merged = False
            if held is not None:
                yield held
                held = None
        if chunk.too_long or chunk.data.count(b'"') % 2 == 0:
            yield chunk
            continue
        end = _last_row_end(chunk.data)
        if end == 0 and merged:
            yield chunk
        elif end == 0:
            held = chunk
        else:
            lines = chunk.data.count(b"\n", 0, end)
            yield Chunk(chunk.data[:end], chunk.first, lines)
            held = Chunk(chunk.data[end:], chunk.first + lines, chunk.lines - lines)
    if held is not None:
        yield held


def _last_row_end(data: bytes) -> int:
    """Just after the last line end before which quotes are paired; 0 where there is none."""
    # The count is odd in all: before the last quote it is even, and line ends there are ends of rows.
    return data.rfind(b"\n", 0, data.rfind(b'"')) + 1


def _batch(chunk: Chunk, columns: list[str], layout: Layout, name: str) -> Batch:
    if chunk.too_long:
        return Batch(
            _frame([], [], columns),
            1,
            [Reject(name, chunk.first, "unreadable line: too long", printable(chunk.data))],
        )
    fast = None if layout.quoted and b'"' in chunk.data else _fast(chunk, columns, layout)
    return _slow(chunk, columns, layout, name) if fast is None else Batch(fast, len(fast), [])


def _fast(chunk: Chunk, columns: list[str], layout: Layout) -> pl.DataFrame | None:
    """The block through polars, or None where one of its lines is blank or does not fit."""
    if b"\x00" in chunk.data or b"\r" in chunk.data or not _even(chunk, layout):
        return None
    try:
        frame = pl.read_csv(
            chunk.data,
            has_header=False,
            schema=dict.fromkeys(layout.columns, pl.String),
            separator=_byte(layout).decode(),
            quote_char=None,
            columns=[layout.columns.index(column) for column in columns],
        )
    except pl.exceptions.PolarsError:
        return None
    if len(frame) != chunk.lines:
        return None
    lines = pl.int_range(chunk.first, chunk.first + chunk.lines, dtype=pl.Int64, eager=True)
    return clean(frame, columns).with_columns(lines.alias(LINE))


def _byte(layout: Layout) -> bytes:
    return b"\x1f" if len(layout.separator) > 1 else layout.separator.encode()


def _even(chunk: Chunk, layout: Layout) -> bool:
    """Whether every line has as many fields as the header; polars fills up or cuts those that have not."""
    data = np.frombuffer(chunk.data, np.uint8)
    ends = np.flatnonzero(data == 10)
    if len(ends) < chunk.lines:
        ends = np.append(ends, len(data))
    separators = np.flatnonzero(data == _byte(layout)[0])
    counts = np.diff(np.searchsorted(separators, ends), prepend=0)
    return bool((counts == len(layout.columns) - 1).all())


def _slow(chunk: Chunk, columns: list[str], layout: Layout, name: str) -> Batch:
    csv.field_size_limit(sys.maxsize)
    text = chunk.data.decode("utf-8", "surrogateescape")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_byte(layout).decode(), quoting=_quoting(layout.quoted)
    )
    places = [layout.columns.index(column) for column in columns]
    rows: list[list[str]] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    while True:
        line = chunk.first + reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            rejects.append(Reject(name, line, f"unreadable line: {error}", ""))
            continue
        if not row:
            continue
        fault = _fault(row, len(layout.columns))
        if fault:
            rejects.append(Reject(name, line, fault, printable(",".join(row))))
            continue
        rows.append([row[place] for place in places])
        lines.append(line)
    return Batch(_frame(rows, lines, columns), len(rows) + len(rejects), rejects)


def _frame(rows: list[list[str]], lines: list[int], columns: list[str]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    return clean(frame, columns).with_columns(pl.Series(LINE, lines, pl.Int64))


def _fault(row: list[str], width: int) -> str | None:
    if len(row) != width:
        return f"unreadable line: {len(row)} fields where the header has {width}"
    return text_fault("".join(row))
