"""`[data]`: where the data comes from and how it is prepared."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from llmemb_cli.config.fields import Section, setting
from llmemb_cli.errors import WrongUseError

EXCEL = "excel"  # as data.time_format: days since 1900, as spreadsheets store times
# Settings that came after others, off: data prepared before are as with them.
DATA_OFF: dict[str, object] = {"time_format": ""}


class DataSettings(Section):
    dataset: str = setting("custom", "data set preset, or custom")
    edition: str = setting("", "edition of the data set (Amazon: 2014, 2018, 2023); empty: detected from the files")
    source: str = setting("", "file, archive or folder with the raw data; empty: the preset's own sources")
    interactions: str = setting("", "custom: file with the interactions (CSV, TSV, JSON Lines, Parquet; gzipped too)")
    items: str = setting("", "custom, sequences: file with the items; empty: items without attributes")
    encoding: Literal["utf-8", "latin-1", "cp1252"] = setting("utf-8", "custom, sequences: how the text is encoded")
    user_column: str = setting("", "custom: column with the user id; empty: guessed")
    item_column: str = setting("", "custom, sequences: column with the item id; empty: guessed")
    time_column: str = setting(
        "",
        "custom: column with the time (seconds, milliseconds or dates); empty: guessed, else the order of the lines",
    )
    time_format: str = setting(
        "",
        "custom: how times are written where they are not recognised, as strptime has it (%m/%d/%Y %H:%M), or excel "
        "for numbers of days since 1900",
    )
    rating_column: str = setting("", "custom: column with the rating; empty: guessed")
    title_column: str = setting("", "custom, sequences: column with the item's name; empty: guessed")
    attributes: list[str] = setting(
        [], "item columns that go into prompts, in this order; empty: all that do not leak"
    )
    leaking: bool = setting(
        False,
        "also put attributes that tell an item's popularity or future into prompts: review counts, ratings, sales "
        "rank, open or closed",
        source="LLMEmb code does",
    )
    min_rating: float | None = setting(
        None, "leave out interactions rated lower, and those without a rating", unit="stars", allow_inf_nan=False
    )
    start: str = setting("", "leave out interactions before this day", unit="YYYY-MM-DD, UTC")
    end: str = setting("", "leave out interactions on or after this day", unit="YYYY-MM-DD, UTC")
    repeats: Literal["keep", "first", "last"] = setting(
        "keep", "a user's repeated interactions with one item: keep all, only the first, or only the last"
    )
    max_users: int | None = setting(None, "keep a random sample of at most this many users, before the filter", ge=1)
    sample: float | None = setting(
        None, "keep a random sample of this share of the users, before the filter", unit="0 to 1", gt=0, le=1
    )
    filter: Literal["single-pass", "k-core", "none"] = setting(
        "single-pass",
        "how rare users and items are left out: in one pass over both, then users that it left with too few; or pass "
        "after pass until nothing changes",
        source="single-pass: LLMEmb code; k-core: usual elsewhere",
    )
    min_user: int = setting(3, "fewest interactions of a user", ge=1, source="LLMEmb code")
    min_item: int = setting(3, "fewest interactions of an item", ge=1, source="LLMEmb code")
    split: Literal["leave-one-out", "time"] = setting(
        "leave-one-out",
        "what tests: the last item of each user (the one before validates), or what comes after points in time",
        source="leave-one-out: LLMEmb section 4.1",
    )
    valid_from: str = setting("", "split time: validation starts on this day", unit="YYYY-MM-DD, UTC")
    test_from: str = setting("", "split time: test starts on this day", unit="YYYY-MM-DD, UTC")
    allow_small: bool = setting(False, "accept a data set that is left with fewer than 100 users or items")
    tail_share: float = setting(
        0.8, "share of items, least popular first, that are the tail", gt=0, lt=1, source="LLMEmb section 4.1"
    )


# Whole preparations by name, for `llmemb init --preset`.
PREPARATIONS: dict[str, dict[str, object]] = {
    "paper": {
        **{"filter": "single-pass", "min_user": 3, "min_item": 3, "repeats": "keep", "split": "leave-one-out"},
        **{"tail_share": 0.8, "leaking": True},
    },
    "5-core": {
        **{"filter": "k-core", "min_user": 5, "min_item": 5, "repeats": "keep", "split": "leave-one-out"},
    },
}


def day_seconds(text: str, name: str) -> int:
    """Seconds since 1970 of a day in UTC.

    Raises:
        WrongUseError: it is not YYYY-MM-DD.
    """
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise WrongUseError(f"{name}: {text!r} is not a date", hint="write it as YYYY-MM-DD") from None


def check_time_format(form: str) -> None:
    """Refuse what says nothing of how times are written, before a file is read.

    Raises:
        WrongUseError: it is neither empty nor `excel`, and has no year, month and day (or number of the day, or
            seconds since 1970), or something that is unknown there.
    """
    if form in ("", EXCEL):
        return
    import polars as pl
    from polars.exceptions import PolarsError

    now = datetime(2014, 11, 23, 16, 53, 20)
    try:
        written = pl.Series([now]).dt.strftime(form)
        read = written.str.to_datetime(form, strict=False, exact=True)[0]
    except PolarsError:
        read = None
    if read is None or read.date() != now.date():
        raise WrongUseError(
            f"data.time_format: {form!r} is no form of a time",
            hint=f"for example %m/%d/%Y %H:%M for 11/23/2014 16:53, or {EXCEL}",
        )


def check_rules(data: DataSettings) -> None:
    """Refuse rules that contradict each other before gigabytes have been read.

    Raises:
        WrongUseError: a day that is none, a period that ends before it starts, a split without its days, a form
            of times that is none.
    """
    if data.start and data.end and day_seconds(data.start, "data.start") >= day_seconds(data.end, "data.end"):
        raise WrongUseError(f"data.end {data.end} is not after data.start {data.start}", hint="--start, --end")
    check_time_format(data.time_format)
    if data.start:
        day_seconds(data.start, "data.start")
    if data.end:
        day_seconds(data.end, "data.end")
    if data.split == "time":
        time_cuts(data)
    elif data.valid_from or data.test_from:
        raise WrongUseError(
            "data.valid_from and data.test_from are for a split by time, this one is leave-one-out",
            hint="add --split time, or leave them out",
        )


def time_cuts(data: DataSettings) -> tuple[int, int]:
    """When validation and test start, in seconds since 1970.

    Raises:
        WrongUseError: one is missing or no day, or they are the wrong way round.
    """
    if not (data.valid_from and data.test_from):
        raise WrongUseError(
            "a split by time needs data.valid_from and data.test_from",
            hint="add --valid-from YYYY-MM-DD and --test-from YYYY-MM-DD",
        )
    valid, test = day_seconds(data.valid_from, "data.valid_from"), day_seconds(data.test_from, "data.test_from")
    if valid >= test:
        raise WrongUseError(
            f"data.valid_from {data.valid_from} must be before data.test_from {data.test_from}",
            hint="--valid-from, --test-from",
        )
    return valid, test
