"""Tables as CSV that may be opened in a spreadsheet: text from the data never becomes a formula there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

# What spreadsheets take for the beginning of a formula, also after white space.
FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")


def csv_table(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """A header and rows as CSV; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in ([*columns], *rows):
        writer.writerow([safe_cell(value) for value in row])
    return buffer.getvalue()


def safe_cell(value: Any) -> Any:
    """The value of a cell; an apostrophe stands before text that a spreadsheet would run as a formula.

    Numbers, and text that is a number (an item called -5), stay as they are.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # the writer would leave a lone \r unquoted
    # White space is more than the blank: also the unit separator, or a no-break space.
    if not (value.lstrip(" ").startswith(FORMULA) or value.lstrip().startswith(FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
