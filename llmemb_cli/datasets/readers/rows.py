"""Separated text row by row, whatever is in it: a fault costs its own line and no other."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmemb_cli.datasets.readers.chunks import MAX_LINE
from llmemb_cli.datasets.readers.jsonl import text_fault

if TYPE_CHECKING:
    from _csv import Reader

MAX_ROW_LINES = 1000  # a quoted field with more line ends is a stray quote
csv.field_size_limit(2**31 - 1)


@dataclass
class Row:
    """A row, or why there is none.

    Attributes:
        line: index of its first line.
        fields: its fields; empty where there is a fault.
        fault: what is wrong with it, or "".
        unfinished: a quote is open at the end of the lines, and more may follow.
    """

    line: int
    fields: list[str] = field(default_factory=list)
    fault: str = ""
    unfinished: bool = False


class _Lines:
    """Lines as csv.reader asks for them: one, and more while a quote is open. Can be set back to an earlier one."""

    def __init__(self, lines: list[str]) -> None:
        self.lines, self.at = lines, 0
        self.begin(0)

    def begin(self, at: int) -> None:
        """Start a row at line `at`."""
        self.start = self.at = at
        self.taken = 0
        self.too_long = self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.at - self.start == MAX_ROW_LINES or self.taken > MAX_LINE:
            self.too_long = True
            raise StopIteration
        if self.at == len(self.lines):
            self.ended = True
            raise StopIteration
        line = self.lines[self.at]
        self.at += 1
        self.taken += len(line)
        return line


def csv_reader(lines: Iterable[str], separator: str, quoted: bool) -> Reader:
    """The rows of `lines`; without `quoted` a quote is a character like any other."""
    return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def read_rows(lines: list[str], separator: str, quoted: bool, width: int, more: bool) -> Iterator[Row]:
    """Every row of `lines` (with their line ends); lines that are blank are none.

    A row with another number of fields than `width`, or whose quote is never closed, is a fault of its first line
    alone: reading goes on with the line after it, so that a stray quote does not swallow what follows.

    Args:
        more: whether lines follow these: a row that is open at the end is then unfinished, and the last.
    """
    source = _Lines(lines)
    reader = csv_reader(source, separator, quoted)
    while source.at < len(lines):
        start = source.at
        source.begin(start)
        try:
            fields = next(reader)
        except csv.Error as error:
            yield Row(start, fault=f"unreadable line: {error}")
            source.begin(start + 1)
            continue
        if source.ended and more:
            yield Row(start, unfinished=True)
            return
        if source.ended or source.too_long:
            fault = "unreadable line: a quote is never closed"
        elif not fields:
            continue
        else:
            fault = (
                "" if len(fields) == width else f"unreadable line: {len(fields)} fields where the header has {width}"
            )
        if fault:
            yield Row(start, fault=fault)
            source.begin(start + 1)
        elif fault := text_fault("".join(fields)) or "":
            yield Row(start, fault=fault)
        else:
            yield Row(start, fields)
