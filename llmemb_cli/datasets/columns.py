"""Which column is what: told by the user, or guessed from its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmemb_cli.datasets.readers.chunks import LINE
from llmemb_cli.datasets.readers.tabular import column_names
from llmemb_cli.errors import BadDataError, WrongUseError, near_match
from llmemb_cli.progress import Reporter

if TYPE_CHECKING:
    import polars as pl

NAMES: dict[str, tuple[str, ...]] = {
    "user_column": ("user_id", "userid", "user", "uid", "reviewerid", "customer_id", "customer", "visitorid"),
    "item_column": (
        *("item_id", "itemid", "item", "iid", "asin", "parent_asin", "product_id", "productid", "product"),
        *("movie_id", "movieid", "business_id", "sku", "stock_code", "article_id", "track_id", "isbn"),
    ),
    "time_column": ("timestamp", "time", "ts", "unixreviewtime", "datetime", "date", "event_time", "created_at"),
    "rating_column": ("rating", "overall", "stars", "score"),
    "title_column": ("title", "name", "item_name", "movie_title", "product_name", "product_title"),
}
IN_LOG = ("user_column", "item_column", "time_column", "rating_column")
FLAG = {name: "--" + name.replace("_", "-") for name in NAMES}
# Attributes that tell how popular an item is or became stay out of prompts unless asked for.
LEAKING = {
    *("review_count", "reviews", "rating", "ratings", "average_rating", "rating_number", "stars", "overall"),
    *("sales_rank", "salesrank", "rank", "is_open", "popularity", "votes", "num_reviews", "also_buy", "also_view"),
    *("date", "timestamp", "open"),
}
# The same in names of several words, such as units_sold.
LEAKING_WORDS = {
    "sold",
    "sales",
    "orders",
    "purchases",
    "views",
    "clicks",
    "plays",
    "downloads",
    "popularity",
    "reviews",
}
TIME_WORDS = {"time", "date", "datetime", "timestamp", "at", "ts"}

Ask = Callable[[str, list[str]], str]


def guess_column(kind: str, columns: list[str]) -> tuple[str | None, bool]:
    """The column that `kind` most likely is, and whether that is sure (exactly one fits).

    "User ID", userId and user-id are one name.
    """
    spelt = {column: {"".join(words_of(column)), "_".join(words_of(column))} for column in columns}
    fits = list(dict.fromkeys(column for name in NAMES[kind] for column in columns if name in spelt[column]))
    if not fits and kind == "time_column":
        # purchased_at, order_date: without it the order of the lines would be taken for that of time.
        fits = [column for column in columns if not TIME_WORDS.isdisjoint(words_of(column)[-1:])]
    return (fits[0] if fits else None), len(fits) == 1


def id_column(where: str, columns: list[str], filed: str) -> str:
    """The column with the item ids of a file that comes later: as in `[data]` (`filed`), item_id, or the likeliest.

    Raises:
        BadDataError: none can be told.
    """
    key = items_key(filed if filed in columns else "item_id", columns)
    if key is None:
        found = f"which column is the item's id? there are: {', '.join(columns)}"
        raise BadDataError(found, where=where, hint="call it item_id")
    return key


def words_of(column: str) -> list[str]:
    """The words of a column's name: unitsSold, units_sold and "Units sold" alike."""
    return [word.lower() for word in re.split(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])", column) if word]


def leaks(column: str) -> bool:
    """Whether an attribute of this name gives away how popular an item is or became."""
    return column.lower() in LEAKING or not LEAKING_WORDS.isdisjoint(words_of(column))


def resolve_custom(values: dict[str, Any], ask: Ask | None) -> dict[str, Any]:
    """Fill in the columns of `[data]` for a custom data set; ask where the guess is not sure.

    Raises:
        WrongUseError: a needed column cannot be guessed and nobody can be asked, or one column is to be two things;
            names the flags.
    """
    if not values.get("interactions"):
        raise WrongUseError("a custom data set needs a file with interactions", hint="add --interactions FILE")
    encoding = values.get("encoding") or "utf-8"
    log = column_names(Path(values["interactions"]), encoding=encoding, sample=True)
    chosen = dict(values)
    taken = {kind: values[kind] for kind in IN_LOG if values.get(kind)}
    for kind in IN_LOG:
        asked = None if kind == "rating_column" else ask
        free = [name for name in log if name not in taken.values()]
        needed = kind in ("user_column", "item_column")
        where = values["interactions"] if needed else ""
        chosen[kind] = taken[kind] = _resolve(kind, values.get(kind), free, asked, where, needed=needed)
    _refuse_shared(taken)
    if values.get("items"):
        if Path(values["items"]).resolve() == Path(values["interactions"]).resolve():
            raise WrongUseError(
                "--interactions and --items are the same file",
                where=str(values["items"]),
                hint="a catalogue has a line an item; without one leave --items out",
            )
        items = column_names(Path(values["items"]), encoding=encoding)
        key = items_key(chosen["item_column"], items)
        if key is None:
            raise WrongUseError(
                f"no column {chosen['item_column']} in the items file; there are: {', '.join(items)}",
                where=str(values["items"]),
                hint=f"call the column with the item ids {chosen['item_column']} there too",
            )
        free = [name for name in items if name != key]
        chosen["title_column"] = _resolve("title_column", values.get("title_column"), free, None, "", needed=False)
        _refuse_shared({"item_column": key, "title_column": chosen["title_column"]})
        for name in chosen.get("attributes") or []:
            if name not in items and not (name == "title" and chosen["title_column"]):
                close = near_match(name, items)
                raise WrongUseError(
                    f"no column {name}; there are: {', '.join(items)}",
                    where=str(values["items"]),
                    hint=f"--attributes: did you mean {close}?" if close else "--attributes",
                )
    return chosen


def items_key(item_column: str, columns: list[str]) -> str | None:
    """The column of a file of items with their ids: called as it is in the log, or likely by its name.

    A column called id is theirs here; in a log it could be that of a line.
    """
    if item_column in columns:
        return item_column
    likely, _ = guess_column("item_column", columns)
    return likely or next((column for column in columns if column.strip().lower() == "id"), None)


def _refuse_shared(roles: dict[str, str]) -> None:
    """Refuse one column as two things: it would silently be the last of them."""
    for kind, column in roles.items():
        others = [FLAG[other] for other, name in roles.items() if name == column and other != kind]
        if column and others:
            raise WrongUseError(
                f"the column {column} cannot be two things: {FLAG[kind]} and {others[0]}",
                hint="name another column with one of the two",
            )


def named_items(
    frame: pl.DataFrame, key: str, title: str | None, report: Reporter
) -> tuple[pl.DataFrame, dict[str, str]]:
    """`item_id`, `title` (if there is one), the other columns in order, `LINE`; and what is called otherwise here.

    Args:
        frame: a file's columns and `LINE`.
        key: the column with the ids.
        title: the column with the titles. Another one that is called so is left out.

    Raises:
        WrongUseError: both are the same column.
    """
    _refuse_shared({"item_column": key, "title_column": title or ""})
    names = {key: "item_id"} | ({title: "title"} if title else {})
    others = [name for name in frame.columns if name not in (*names, LINE) and not (title and name == "title")]
    if any(not name.strip() for name in others):
        # The row numbers that pandas writes under an empty name: they tell nothing about an item.
        report.note("the items' column without a name is left out")
        others = [name for name in others if name.strip()]
    if "item_id" in others:
        # Not the ids, but called as ours are.
        numbered = (f"item_id_{n}" for n in range(2, len(others) + 3))
        names["item_id"] = next(name for name in numbered if name not in others)
    renamed = {old: new for old, new in names.items() if old in others}
    return frame.select(key, *([title] if title else []), *others, LINE).rename(names), renamed


def _resolve(kind: str, given: str | None, columns: list[str], ask: Ask | None, where: str, *, needed: bool) -> str:
    if given:
        return given
    guess, sure = guess_column(kind, columns)
    if guess is not None and (sure or ask is None):
        # Several names fit and nobody can be asked: a needed column is not left to chance.
        if sure or not needed:
            return guess
    elif guess is None and not needed and ask is None:
        return ""
    if ask is not None:
        return ask(kind, columns)
    raise WrongUseError(
        f"which column is the {kind.removesuffix('_column')}? there are: {', '.join(columns)}",
        where=where or None,
        hint=f"say it with {FLAG[kind]} NAME",
    )
