"""`[data]`: where the data comes from and how it is prepared."""

from __future__ import annotations

from typing import Literal

from llmemb_cli.config.fields import Section, setting


class DataSettings(Section):
    dataset: str = setting("custom", "data set preset, or custom")
    edition: str = setting("", "edition of the data set (Amazon: 2014, 2018, 2023); empty: detected from the files")
    source: str = setting("", "file or folder with the raw data; empty: the preset's own sources")
    interactions: str = setting("", "custom: file with the interactions (CSV, TSV, JSON Lines, Parquet)")
    items: str = setting("", "custom, sequences: file with the items; empty: items without attributes")
    encoding: Literal["utf-8", "latin-1", "cp1252"] = setting("utf-8", "custom: how CSV text is encoded")
    user_column: str = setting("", "custom: column with the user id")
    item_column: str = setting("", "custom: column with the item id")
    time_column: str = setting("", "custom: column with the time; empty: order of the lines")
    rating_column: str = setting("", "custom: column with the rating")
    title_column: str = setting("", "custom: column with the item's name")
    attributes: list[str] = setting([], "item columns that go into prompts; empty: all that do not leak")
    leaking: bool = setting(
        False,
        "put attributes that tell an item's popularity or future into prompts (review counts, ratings, sales rank, "
        "open or closed)",
        source="the authors did",
    )
    min_rating: float | None = setting(None, "leave out interactions rated lower")
    start: str = setting("", "leave out interactions before this date", unit="YYYY-MM-DD, UTC")
    end: str = setting("", "leave out interactions on or after this date", unit="YYYY-MM-DD, UTC")
    repeats: Literal["keep", "first", "last"] = setting(
        "keep", "a user's repeated interactions with one item: keep them, or only the first or last"
    )
    filter: Literal["single-pass", "k-core", "none"] = setting(
        "single-pass",
        "how rare users and items are left out: in one pass, or repeatedly until nothing changes",
        source="single-pass: the authors' code; k-core: usual elsewhere",
    )
    min_user: int = setting(3, "least interactions of a user", ge=1, source="LLMEmb code")
    min_item: int = setting(3, "least interactions of an item", ge=1, source="LLMEmb code")
    split: Literal["leave-one-out", "time"] = setting(
        "leave-one-out", "last item tests and the one before validates, or cut at points in time"
    )
    valid_from: str = setting("", "split by time: validation starts here", unit="YYYY-MM-DD, UTC")
    test_from: str = setting("", "split by time: test starts here", unit="YYYY-MM-DD, UTC")
    max_users: int | None = setting(None, "keep a random sample of at most this many users", ge=1)
    sample: float | None = setting(None, "keep a random sample of this share of the users", gt=0, le=1)
    allow_small: bool = setting(False, "accept a data set with fewer than 100 users or items")
    tail_share: float = setting(
        0.8, "share of items, least popular first, that are the tail", gt=0, lt=1, source="LLMEmb section 4.1"
    )


# Whole preparations by name, for `llmemb init --preset`.
PREPARATIONS: dict[str, dict[str, object]] = {
    "paper": {
        **{"filter": "single-pass", "min_user": 3, "min_item": 3, "repeats": "keep", "split": "leave-one-out"},
        **{"leaking": True},
    },
    "5-core": {
        **{"filter": "k-core", "min_user": 5, "min_item": 5, "repeats": "keep", "split": "leave-one-out"},
    },
}
