"""Which column is what: told by the user, or guessed from its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmemb_cli.datasets.readers.tabular import column_names
from llmemb_cli.errors import WrongUseError, near_match

NAMES: dict[str, tuple[str, ...]] = {
    "user_column": ("user_id", "userid", "user", "uid", "reviewerid", "customer_id", "customer", "visitorid"),
    "item_column": (
        *("item_id", "itemid", "item", "iid", "asin", "parent_asin", "product_id", "productid", "product"),
        *("movie_id", "movieid", "business_id", "sku", "article_id", "track_id", "isbn"),
    ),
    "time_column": ("timestamp", "time", "ts", "unixreviewtime", "datetime", "date", "event_time", "created_at"),
    "rating_column": ("rating", "overall", "stars", "score"),
    "title_column": ("title", "name", "item_name", "movie_title", "product_name", "product_title"),
}
FLAG = {name: "--" + name.replace("_", "-") for name in NAMES}
# Attributes that tell how popular an item is or became stay out of prompts unless asked for.
LEAKING = {
    *("review_count", "reviews", "rating", "ratings", "average_rating", "rating_number", "stars", "overall"),
    *("sales_rank", "salesrank", "rank", "is_open", "popularity", "votes", "num_reviews", "also_buy", "also_view"),
    *("date", "timestamp", "open"),
}

Ask = Callable[[str, list[str]], str]


def guess_column(kind: str, columns: list[str]) -> tuple[str | None, bool]:
    """The column that `kind` most likely is, and whether that is sure (exactly one name fits)."""
    fits = [column for name in NAMES[kind] for column in columns if column.strip().lower() == name]
    return (fits[0] if fits else None), len(fits) == 1


def resolve_custom(values: dict[str, Any], ask: Ask | None) -> dict[str, Any]:
    """Fill in the columns of `[data]` for a custom data set; ask where the guess is not sure.

    Raises:
        WrongUseError: a needed column cannot be guessed and nobody can be asked; names the flag.
    """
    if not values.get("interactions"):
        raise WrongUseError("a custom data set needs a file with interactions", hint="add --interactions FILE")
    encoding = values.get("encoding") or "utf-8"
    log = column_names(Path(values["interactions"]), encoding=encoding, sample=True)
    chosen = dict(values)
    for kind in ("user_column", "item_column"):
        chosen[kind] = _resolve(kind, values.get(kind), log, ask, values["interactions"], needed=True)
    chosen["time_column"] = _resolve("time_column", values.get("time_column"), log, ask, "", needed=False)
    chosen["rating_column"] = _resolve("rating_column", values.get("rating_column"), log, None, "", needed=False)
    if values.get("items"):
        items = column_names(Path(values["items"]), encoding=encoding)
        chosen["title_column"] = _resolve("title_column", values.get("title_column"), items, None, "", needed=False)
        if chosen["item_column"] not in items and guess_column("item_column", items)[0] is None:
            raise WrongUseError(
                f"no column {chosen['item_column']} in the items file; there are: {', '.join(items)}",
                where=str(values["items"]),
                hint="the item id must have the same column name in both files",
            )
        for name in chosen.get("attributes") or []:
            if name not in items and not (name == "title" and chosen["title_column"]):
                close = near_match(name, items)
                raise WrongUseError(
                    f"no column {name}; there are: {', '.join(items)}",
                    where=str(values["items"]),
                    hint=f"--attributes: did you mean {close}?" if close else "--attributes",
                )
    return chosen


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
