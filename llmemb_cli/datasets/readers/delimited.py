"""CSV, TSV and other separated text as text columns, in blocks."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from llmemb_cli.datasets.readers.chunks import BOM, LINE, Batch, Chunk, Reject, in_order, line_chunks, printable
from llmemb_cli.datasets.readers.jsonl import clean
from llmemb_cli.datasets.readers.rows import Row, csv_reader, read_rows
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import BadDataError
from llmemb_cli.progress import Reporter

HEAD_BYTES = 1 << 20
# RecBole's headers carry a type: `user_id:token`.
_TYPE = re.compile(r":(token|float)(_seq)?$")


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

    @property
    def byte(self) -> str:
        """The separator in blocks, where it is one byte."""
        return "\x1f" if len(self.separator) > 1 else self.separator


def sniff(file: RawFile, encoding: str = "utf-8") -> Layout:
    """The layout of a file with a header line.

    Raises:
        BadDataError: the first line is no header of distinct names, or the text is UTF-16.
    """
    with file.open() as stream:
        raw = stream.read(HEAD_BYTES)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadDataError("the text is UTF-16", where=file.where, hint="save it as UTF-8")
    if b"\x00" in raw.split(b"\n", 1)[0]:
        raise BadDataError("the first line is no text: it holds NUL bytes", where=f"{file.where}, line 1")
    head = raw.removeprefix(BOM).decode(encoding, "replace")
    separator = _separator(file.name, head.split("\n", 1)[0])
    # In tab-separated exports a quote is a character like any other.
    quoted = separator != "\t"
    rows = csv_reader(io.StringIO(head, newline="\n"), separator, quoted)
    try:
        columns = [_TYPE.sub("", name.strip()) for name in next(rows, [])]
    except csv.Error as error:
        raise BadDataError(f"the first line is not a header: {error}", where=f"{file.where}, line 1") from error
    if len(set(columns)) != len(columns) or not any(columns):
        raise BadDataError("the first line is not a header with distinct column names", where=f"{file.where}, line 1")
    return Layout(columns, separator, rows.line_num, quoted, encoding)


def _separator(name: str, header: str) -> str:
    if name.lower().removesuffix(".gz").endswith((".tsv", ".tab", ".inter", ".item", ".user")):
        return "\t"
    return max(",\t;|", key=header.count)


def scan_delimited(file: RawFile, columns: list[str], layout: Layout, report: Reporter) -> Iterator[Batch]:
    """The `columns` of every row as text, in blocks; a row with too few or many fields is a reject.

    A block without quotes and faults goes through polars, any other row by row; the result is the same, and does
    not depend on where blocks end.
    """
    chunks = _after_header(line_chunks(file, report), layout.header_lines)
    chunks = (_normalised(chunk, layout) for chunk in chunks)
    read = _Reader(columns, layout, file.name)
    return in_order(read.part, read.quoted_apart(chunks) if layout.quoted else chunks)


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
        # A byte that stands for nothing stays what it is: it is no UTF-8 either, and is told of its line.
        data = data.decode(layout.encoding, "surrogateescape").encode("utf-8", "surrogateescape")
    if len(layout.separator) > 1:
        data = data.replace(layout.separator.encode(), b"\x1f")
    return replace(chunk, data=data)


@dataclass(frozen=True)
class _Reader:
    """Reads the blocks of one file."""

    columns: list[str]
    layout: Layout
    name: str

    def part(self, part: Chunk | Batch) -> Batch:
        """A block of whole rows."""
        if isinstance(part, Batch):
            return part
        if part.too_long:
            fault = Reject(self.name, part.first, "unreadable line: too long", printable(part.data))
            return Batch(self._frame([], []), 1, [fault])
        fast = None if self.layout.quoted and b'"' in part.data else self._fast(part)
        return self._slow(part)[0] if fast is None else Batch(fast, len(fast), [])

    def quoted_apart(self, chunks: Iterator[Chunk]) -> Iterator[Chunk | Batch]:
        """Blocks of whole rows: those with quotes are read here.

        A quoted field may hold line ends, so that only reading tells where a block's last row ends.
        """
        rest: Chunk | None = None
        for chunk in chunks:
            if rest is not None and chunk.too_long:
                yield self._slow(rest)[0]
            elif rest is not None:
                chunk = Chunk(rest.data + chunk.data, rest.first, rest.lines + chunk.lines)
            rest = None
            if chunk.too_long or b'"' not in chunk.data:
                yield chunk
                continue
            batch, rest = self._slow(chunk, more=True)
            yield batch
        if rest is not None:
            yield self._slow(rest)[0]

    def _fast(self, chunk: Chunk) -> pl.DataFrame | None:
        """The block through polars, or None where one of its lines is blank or does not fit."""
        if b"\x00" in chunk.data or b"\r" in chunk.data or b"\n\n" in chunk.data or chunk.data.startswith(b"\n"):
            return None
        if chunk.looks_packed or not self._even(chunk):
            return None
        try:
            frame = pl.read_csv(
                chunk.data,
                has_header=False,
                schema=dict.fromkeys(self.layout.columns, pl.String),
                separator=self.layout.byte,
                quote_char=None,
                columns=[self.layout.columns.index(column) for column in self.columns],
            )
        except pl.exceptions.PolarsError:
            return None
        if len(frame) != chunk.lines:
            return None
        lines = pl.int_range(chunk.first, chunk.first + chunk.lines, dtype=pl.Int64, eager=True)
        return clean(frame, self.columns).with_columns(lines.alias(LINE))

    def _even(self, chunk: Chunk) -> bool:
        """Whether every line has as many fields as the header; polars fills up or cuts those that have not."""
        data = np.frombuffer(chunk.data, np.uint8)
        ends = np.flatnonzero(data == 10)
        if len(ends) < chunk.lines:
            ends = np.append(ends, len(data))
        separators = np.flatnonzero(data == ord(self.layout.byte))
        counts = np.diff(np.searchsorted(separators, ends), prepend=0)
        return bool((counts == len(self.layout.columns) - 1).all())

    def _slow(self, chunk: Chunk, more: bool = False) -> tuple[Batch, Chunk | None]:
        """The block row by row; where `more` follows, an unfinished last row comes back as a block."""
        lines = io.StringIO(chunk.data.decode("utf-8", "surrogateescape"), newline="\n").readlines()
        places = [self.layout.columns.index(column) for column in self.columns]
        rows: list[list[str]] = []
        numbers: list[int] = []
        rejects: list[Reject] = []
        for row in read_rows(lines, self.layout.byte, self.layout.quoted, len(self.layout.columns), more):
            number = chunk.first + row.line
            if row.unfinished:
                data = "".join(lines[row.line :]).encode("utf-8", "surrogateescape")
                rest = Chunk(data, number, chunk.lines - row.line)
                return self._as_batch(rows, numbers, rejects), rest
            if row.fault:
                rejects.append(Reject(self.name, number, self._reason(row), printable(lines[row.line].rstrip("\n"))))
                continue
            rows.append([row.fields[place] for place in places])
            numbers.append(number)
        return self._as_batch(rows, numbers, rejects), None

    def _reason(self, row: Row) -> str:
        return row.fault.replace("UTF-8", self.layout.encoding.upper())

    def _as_batch(self, rows: list[list[str]], numbers: list[int], rejects: list[Reject]) -> Batch:
        return Batch(self._frame(rows, numbers), len(rows) + len(rejects), rejects)

    def _frame(self, rows: list[list[str]], numbers: list[int]) -> pl.DataFrame:
        frame = pl.DataFrame(rows, schema=dict.fromkeys(self.columns, pl.String), orient="row")
        return clean(frame, self.columns).with_columns(pl.Series(LINE, numbers, pl.Int64))
