"""Item records of any shape as a table of readable attributes."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import polars as pl

from llmemb_cli.datasets.raw import Tally
from llmemb_cli.datasets.readers.chunks import LINE, Reject
from llmemb_cli.datasets.readers.jsonl import Record, as_text, text_fault
from llmemb_cli.markup import without_markup

BLOCK = 50_000
SHORT = 500  # characters; features up to here are remembered
MAX_LITERAL = 1 << 18  # characters; a longer Python literal is not an item


def items_table(
    records: Iterator[tuple[int, Record | Reject]],
    describe: Callable[[Record], dict[str, str]],
    columns: list[str],
    name: str,
    tally: Tally,
) -> pl.DataFrame:
    """`item_id`, `columns` (String, null where missing) and `LINE` of every record that can be read.

    Args:
        records: line and record, or why there is none.
        describe: a record's `item_id` and attributes as text; "" is missing.
        name: of the file, for rejects.
        tally: counts rows and rejects.
    """
    schema = dict.fromkeys(["item_id", *columns], pl.String) | {LINE: pl.Int64}
    frames: list[pl.DataFrame] = []
    rows: list[tuple[Any, ...]] = []
    for line, record in records:
        tally.rows_read[name] += 1
        if isinstance(record, Reject):
            tally.add([record])
            continue
        try:
            values = describe(record)
        except (RecursionError, ValueError):
            tally.add([Reject(name, line, "unreadable line: nested too deeply, or a number too long", "")])
            continue
        row = [values.get(column) or None for column in ("item_id", *columns)]
        if fault := text_fault("".join(filter(None, row))):
            tally.add([Reject(name, line, fault, str(row[0])[:100].encode("utf-8", "replace").decode())])
            continue
        rows.append((*row, line))
        if len(rows) == BLOCK:
            frames.append(pl.DataFrame(rows, schema=schema, orient="row"))
            rows.clear()
    frames.append(pl.DataFrame(rows, schema=schema, orient="row"))
    return pl.concat(frames)


def plain_text(value: Any) -> str:
    """A value as one line of readable text: lists joined, markup and entities resolved, blanks tidied."""
    return without_markup(value if isinstance(value, str) else as_text(value))


def parse_literal(text: str) -> Any:
    """A Python literal as data; nothing in it is run.

    Raises:
        ValueError: it is not a literal, or a hostile one (too long, nested too deeply).
    """
    if len(text) > MAX_LITERAL:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray backslash is worth no line on the user's terminal
            return ast.literal_eval(text)
    except (SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError("not a Python literal") from None


def parse_python_object(text: str) -> Record:
    """One line of a file that holds Python dictionaries where JSON was meant.

    Raises:
        ValueError: it is none.
    """
    record = parse_literal(text.strip())
    if not isinstance(record, dict):
        raise ValueError("not a dictionary")
    return record


def features(value: Any) -> str:
    """Nested yes/no and text features as a list a person can read.

    `{"WiFi": "u'free'", "GoodForMeal": {"lunch": True, "dinner": False}}` is "WiFi: free, Good For Meal: lunch",
    and so is `["WiFi: free", "GoodForMeal: {'lunch': True, 'dinner': False}"]`, the form of early 2017.
    What is false, none or missing is left out: a list of what an item lacks would be longer than what it has.
    """
    value = _unpacked(value)
    if isinstance(value, list) and all(isinstance(part, str) and ": " in part for part in value):
        value = dict(part.split(": ", 1) for part in value)
    if not isinstance(value, dict):
        return plain_text(value)
    return ", ".join(filter(None, (_feature(str(key), inner) for key, inner in value.items())))


def _feature(key: str, value: Any) -> str:
    # The same few features stand in every record: a short one is made out once.
    if isinstance(value, str) and len(key) + len(value) <= SHORT:
        return _feature_once(key, value)
    return _feature_text(key, value)


def _feature_text(key: str, value: Any) -> str:
    inner, label = _unpacked(value), words(key)
    if isinstance(inner, dict):
        below = features(inner)
        return f"{label}: {below}" if below else ""
    if inner is True:
        return label
    return "" if inner in (False, None, "", "none", "no") else f"{label}: {plain_text(inner).replace('_', ' ')}"


_feature_once = lru_cache(maxsize=1 << 14)(_feature_text)


def _unpacked(value: Any) -> Any:
    """What a text like "True", "u'free'" or "{'lunch': True}" stands for."""
    if not isinstance(value, str) or value[:1] not in "TFNu'\"{[":
        return value
    try:
        return parse_literal(value)
    except ValueError:
        return value


def words(name: str) -> str:
    """`GoodForMeal`, `good_for_meal` and `PriceRange2` as words; a name that is words already stays."""
    name = name.strip()
    if " " in name:
        return name
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).replace("Wi Fi", "WiFi")
    return re.sub(r"(?<=[a-z])\d$", "", name)
