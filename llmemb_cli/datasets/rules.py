"""The rules that turn raw rows into sequences: checks, filters, order, split. Frames in, frames out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from llmemb_cli.datasets.readers.tabular import LINE, Reject
from llmemb_cli.errors import WrongUseError
from llmemb_cli.seeds import numpy_rng

if TYPE_CHECKING:
    from llmemb_cli.config.data import DataSettings

MILLISECONDS_FROM = 100_000_000_000  # 1e11 s is the year 5138: larger numbers are milliseconds


def check_items(items: pl.DataFrame, name: str) -> tuple[pl.DataFrame, list[Reject]]:
    """Items with one row an id and at least one attribute; the rest as rejects."""
    attributes = [column for column in items.columns if column not in ("item_id", LINE)]
    marked = items.with_columns(
        pl.when(pl.col("item_id").is_null())
        .then(pl.lit("item without an id"))
        .when(~pl.col("item_id").is_first_distinct())
        .then(pl.lit("duplicate item id"))
        .when(pl.all_horizontal(pl.col(attributes).is_null()) if attributes else pl.lit(True))
        .then(pl.lit("item without any attribute"))
        .alias("reason")
    )
    return _part(marked, name, ["item_id"])


def check_interactions(log: pl.DataFrame, known: pl.Series | None, name: str) -> tuple[pl.DataFrame, list[Reject]]:
    """Interactions with user, known item, time (Int64 seconds) and rating (Float64); the rest as rejects."""
    if "timestamp" not in log.columns:
        log = log.with_columns(pl.col(LINE).cast(pl.String).alias("timestamp"))
    if "rating" not in log.columns:
        log = log.with_columns(pl.lit(None, pl.String).alias("rating"))
    number = pl.col("timestamp").cast(pl.Float64, strict=False)
    log = log.with_columns(pl.when(number.is_finite()).then(number).alias("seconds"))
    log = log.with_columns(
        pl.when(pl.col("seconds").is_null() & pl.col("timestamp").is_not_null())
        .then(pl.col("timestamp").map_elements(_iso_seconds, return_dtype=pl.Float64))
        .otherwise(pl.col("seconds"))
        .alias("seconds"),
        pl.col("rating").cast(pl.Float64, strict=False).alias("stars"),
    )
    unknown = pl.lit(False) if known is None else ~pl.col("item_id").is_in(known.implode())
    marked = log.with_columns(
        pl.when(pl.col("user_id").is_null())
        .then(pl.lit("no user id"))
        .when(pl.col("item_id").is_null())
        .then(pl.lit("no item id"))
        .when(unknown)
        .then(pl.lit("unknown item"))
        .when(pl.col("seconds").is_null())
        .then(pl.lit("timestamp is not a number or date"))
        .when(pl.col("stars").is_null() & pl.col("rating").is_not_null())
        .then(pl.lit("rating is not a number"))
        .alias("reason")
    )
    good, rejects = _part(marked, name, ["user_id", "item_id", "timestamp", "rating"])
    seconds = pl.when(pl.col("seconds").abs() >= MILLISECONDS_FROM).then(pl.col("seconds") / 1000)
    return (
        good.select(
            "user_id",
            "item_id",
            seconds.otherwise(pl.col("seconds")).floor().cast(pl.Int64).alias("timestamp"),
            pl.col("stars").alias("rating"),
        ),
        rejects,
    )


def _iso_seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _part(marked: pl.DataFrame, name: str, shown: list[str]) -> tuple[pl.DataFrame, list[Reject]]:
    bad = marked.filter(pl.col("reason").is_not_null())
    rejects = [
        Reject(
            name, row[LINE], row["reason"], ", ".join(str(row[key]) for key in shown if row[key] is not None)[:500]
        )
        for row in bad.select(LINE, "reason", *shown).iter_rows(named=True)
    ]
    return marked.filter(pl.col("reason").is_null()).drop("reason"), rejects


def apply_rules(log: pl.DataFrame, settings: DataSettings, seed: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Filter and order the log; also returns how many rows each rule left out.

    Users stand in the order of their first row in the source; ties in time keep the source's order.
    """
    left_out: dict[str, int] = {}

    def keep(frame: pl.DataFrame, condition: pl.Expr, rule: str) -> pl.DataFrame:
        kept = frame.filter(condition)
        if len(kept) < len(frame):
            left_out[rule] = left_out.get(rule, 0) + len(frame) - len(kept)
        return kept

    log = log.with_row_index("row")
    if settings.min_rating is not None:
        log = keep(log, pl.col("rating") >= settings.min_rating, f"rating below {settings.min_rating:g}")
    if settings.start:
        log = keep(log, pl.col("timestamp") >= day_seconds(settings.start, "data.start"), f"before {settings.start}")
    if settings.end:
        log = keep(log, pl.col("timestamp") < day_seconds(settings.end, "data.end"), f"on or after {settings.end}")
    log = log.with_columns(pl.col("row").min().over("user_id").alias("user_order"))
    log = log.sort("user_order", "timestamp", "row")
    if settings.repeats != "keep":
        pair = pl.struct("user_id", "item_id")
        once = pair.is_first_distinct() if settings.repeats == "first" else pair.is_last_distinct()
        log = keep(log, once, f"repeated, {settings.repeats} kept")
    if settings.max_users is not None:
        log = keep(log, pl.col("user_id").is_in(_sample(log, settings.max_users, seed).implode()), "user not sampled")
    log = _filter_rare(log, settings, keep)
    return log.select("user_id", "item_id", "timestamp", "rating"), left_out


def _sample(log: pl.DataFrame, count: int, seed: int) -> pl.Series:
    users = log["user_id"].unique(maintain_order=True)
    if count >= len(users):
        return users
    return users.gather(sorted(numpy_rng(seed, "sample-users").choice(len(users), count, replace=False).tolist()))


def _filter_rare(log: pl.DataFrame, settings: DataSettings, keep: object) -> pl.DataFrame:
    """Leave out rare users and items: once, or until nothing changes (k-core)."""
    assert callable(keep)
    enough = (pl.len().over("user_id") >= settings.min_user) & (pl.len().over("item_id") >= settings.min_item)
    if settings.filter == "none":
        return log
    before = -1
    while len(log) != before:
        before = len(log)
        log = keep(log, enough, f"user below {settings.min_user} or item below {settings.min_item}")
        if settings.filter == "single-pass":
            # As the authors' code: sequences that the pass made too short go, items are not counted again.
            return keep(
                log, pl.len().over("user_id") >= settings.min_user, f"sequence shorter than {settings.min_user} then"
            )
    return log


def split_column(log: pl.DataFrame, settings: DataSettings) -> pl.DataFrame:
    """Add `split`: train, valid (at most one row a user), test (at most one) or later.

    Leave-one-out: the last item tests, the one before validates, users with fewer than three only train.
    By time: a user's first row from `valid_from` on validates, the first from `test_from` on tests.
    """
    if settings.split == "leave-one-out":
        from_end = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id")
        long_enough = pl.len().over("user_id") >= 3
        label = (
            pl.when(long_enough & (from_end == 1))
            .then(pl.lit("test"))
            .when(long_enough & (from_end == 2))
            .then(pl.lit("valid"))
            .otherwise(pl.lit("train"))
        )
        return log.with_columns(label.alias("split"))
    if not (settings.valid_from and settings.test_from):
        raise WrongUseError(
            "a split by time needs data.valid_from and data.test_from", hint="--set data.test_from=..."
        )
    valid, test = (
        day_seconds(settings.valid_from, "data.valid_from"),
        day_seconds(settings.test_from, "data.test_from"),
    )
    if valid >= test:
        raise WrongUseError("data.valid_from must be before data.test_from")
    period = (
        pl.when(pl.col("timestamp") < valid)
        .then(pl.lit("train"))
        .when(pl.col("timestamp") < test)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
    )
    log = log.with_columns(period.alias("period")).with_columns(
        pl.int_range(pl.len()).over("user_id", "period").alias("place"),
        (pl.col("period") == "train").any().over("user_id").alias("trains"),
    )
    late = (pl.col("period") != "train") & ((pl.col("place") > 0) | ~pl.col("trains"))
    label = pl.when(late).then(pl.lit("later")).otherwise(pl.col("period"))
    return log.with_columns(label.alias("split")).drop("period", "place", "trains")


def day_seconds(text: str, name: str) -> int:
    """Seconds since 1970 of a day in UTC.

    Raises:
        WrongUseError: it is not YYYY-MM-DD.
    """
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise WrongUseError(f"{name}: {text!r} is not a date", hint="write it as YYYY-MM-DD") from None
