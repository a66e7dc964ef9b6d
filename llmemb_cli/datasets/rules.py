"""The rules that turn raw rows into sequences: checks, filters, order, split. Frames in, frames out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import polars as pl

from llmemb_cli.config.data import DataSettings, day_seconds, time_cuts
from llmemb_cli.datasets.raw import Tally
from llmemb_cli.datasets.readers.chunks import LINE
from llmemb_cli.seeds import numpy_rng

MILLISECONDS_FROM = 100_000_000_000  # 1e11 s is the year 5138: larger numbers are milliseconds
LATEST_SECOND = 253_402_300_800  # the year 10000
DATE_FORMS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d")


def check_items(items: pl.DataFrame, name: str, tally: Tally) -> pl.DataFrame:
    """Items with one row an id and at least one attribute; the rest is counted in `tally`."""
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
    return tally.take(marked, name, ["item_id"])


def item_lookup(known: pl.Series | None) -> Callable[[pl.Series], pl.Series] | None:
    """A test whether items (Categorical) are among the `known` ids; None where everything is known.

    Ids are looked up by their category's number: one array access a row, however large the catalogue.
    """
    if known is None:
        return None
    categories = known.drop_nulls().cast(pl.Categorical)
    codes = categories.to_physical().cast(pl.Int64).to_numpy()
    is_known = np.zeros(int(codes.max(initial=-1)) + 2, dtype=bool)
    is_known[codes] = True

    def among_known(items: pl.Series) -> pl.Series:
        # Numbers belong to ids for as long as a column with them is alive, so the catalogue's is kept.
        assert len(categories) == len(codes)
        numbers = items.to_physical().fill_null(len(is_known) - 1).to_numpy()
        return pl.Series(is_known[np.minimum(numbers, len(is_known) - 1)])

    return among_known


def check_interactions(
    log: pl.DataFrame, among_known: Callable[[pl.Series], pl.Series] | None, name: str, tally: Tally
) -> pl.DataFrame:
    """Usable interactions in a compact form; the rest is counted in `tally`.

    Args:
        log: `user_id`, `item_id`, `line`, optionally `timestamp` and `rating`, as text.
        among_known: of `item_lookup`.
        name: of the file, for rejects.
        tally: counts rejects.

    Returns:
        `user_id`, `item_id` (Categorical), `timestamp` (Int64, seconds), `rating` (Float32, null where unknown).
    """
    if "timestamp" not in log.columns:
        log = log.with_columns(pl.col(LINE).cast(pl.String).alias("timestamp"))
    if "rating" not in log.columns:
        log = log.with_columns(pl.lit(None, pl.String).alias("rating"))
    log = log.with_columns(
        _seconds(log["timestamp"]).alias("seconds"),
        pl.col("rating").cast(pl.Float32, strict=False).alias("stars"),
        pl.col("user_id", "item_id").cast(pl.Categorical),
    )
    unknown = pl.lit(False) if among_known is None else pl.lit(~among_known(log["item_id"]))
    marked = log.with_columns(
        pl.when(pl.col("user_id").is_null())
        .then(pl.lit("no user id"))
        .when(pl.col("item_id").is_null())
        .then(pl.lit("no item id"))
        .when(unknown)
        .then(pl.lit("unknown item"))
        .when(pl.col("timestamp").is_null())
        .then(pl.lit("no timestamp"))
        .when(pl.col("seconds").is_null())
        .then(pl.lit("timestamp is not a number or date"))
        .when(pl.col("rating").is_not_null() & ~pl.col("stars").is_finite().fill_null(False))
        .then(pl.lit("rating is not a number"))
        .alias("reason")
    )
    good = tally.take(marked, name, ["user_id", "item_id", "timestamp", "rating"])
    return good.select("user_id", "item_id", pl.col("seconds").alias("timestamp"), pl.col("stars").alias("rating"))


def _seconds(texts: pl.Series) -> pl.Series:
    """Times as whole seconds since 1970: numbers (of milliseconds where they are that large) and dates; else null."""
    number = texts.cast(pl.Float64, strict=False)
    number = pl.select(pl.when(number.is_finite()).then(number)).to_series()
    number = pl.select(pl.when(number.abs() >= MILLISECONDS_FROM).then(number / 1000).otherwise(number)).to_series()
    number = pl.select(pl.when(number.abs() < LATEST_SECOND).then(number.floor())).to_series()
    seconds = number.cast(pl.Int64)
    for form in DATE_FORMS:
        if seconds.null_count() == texts.null_count():
            return seconds
        dates = texts.str.to_datetime(form, strict=False, exact=True, time_unit="us")
        seconds = pl.select(pl.coalesce(seconds, dates.dt.epoch("s"))).to_series()
    left = texts.filter(seconds.is_null() & texts.is_not_null()).unique()
    table = {text: _iso_seconds(text) for text in left}
    if not table:
        return seconds
    other = texts.replace_strict(list(table), list(table.values()), default=None, return_dtype=pl.Int64)
    return pl.select(pl.coalesce(seconds, other)).to_series()


def _iso_seconds(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
    except (ValueError, OverflowError):
        return None


def keep_rows(log: pl.DataFrame, settings: DataSettings, left_out: Counter[str]) -> pl.DataFrame:
    """The rows that pass the rules that look at one row alone; counts the others in `left_out`."""
    if settings.min_rating is not None:
        rated = pl.col("rating").is_not_null()
        log = _keep(log, rated, "no rating", left_out)
        log = _keep(log, pl.col("rating") >= settings.min_rating, f"rating below {settings.min_rating:g}", left_out)
    if settings.start:
        first = day_seconds(settings.start, "data.start")
        log = _keep(log, pl.col("timestamp") >= first, f"before {settings.start}", left_out)
    if settings.end:
        last = day_seconds(settings.end, "data.end")
        log = _keep(log, pl.col("timestamp") < last, f"on or after {settings.end}", left_out)
    return log


def _keep(log: pl.DataFrame, condition: pl.Expr, rule: str, left_out: Counter[str]) -> pl.DataFrame:
    kept = log.filter(condition)
    if len(kept) < len(log):
        left_out[rule] += len(log) - len(kept)
    return kept


def apply_rules(log: pl.DataFrame, settings: DataSettings, seed: int, left_out: Counter[str]) -> pl.DataFrame:
    """Order and filter the whole log; counts in `left_out` how many rows each rule left out.

    Users stand in the order of their first row in the source; ties in time keep the source's order.
    """
    # Polars promises no order of rows: the source's is written down before anything can change it.
    log = log.with_row_index("row")
    log = log.with_columns(pl.col("row").min().over("user_id").alias("user_order"))
    log = log.sort("user_order", "timestamp", "row")
    if settings.repeats != "keep":
        pair = pl.struct("user_id", "item_id")
        once = pair.is_first_distinct() if settings.repeats == "first" else pair.is_last_distinct()
        log = _keep(log, once, f"repeated, {settings.repeats} kept", left_out)
    if settings.sample is not None or settings.max_users is not None:
        log = _keep(
            log, pl.col("user_order").is_in(_sample(log, settings, seed).implode()), "user not sampled", left_out
        )
    log = _filter_rare(log, settings, left_out)
    return log.select("user_id", "item_id", "timestamp", "rating")


def _sample(log: pl.DataFrame, settings: DataSettings, seed: int) -> pl.Series:
    """The users to keep, by their `user_order`."""
    users = log["user_order"].unique().sort()
    count = len(users) if settings.sample is None else max(1, round(len(users) * settings.sample))
    count = min(count, settings.max_users or count)
    return users.gather(np.sort(numpy_rng(seed, "sample-users").choice(len(users), count, replace=False)))


def _filter_rare(log: pl.DataFrame, settings: DataSettings, left_out: Counter[str]) -> pl.DataFrame:
    """Leave out rare users and items: once, or until nothing changes (k-core)."""
    if settings.filter == "none":
        return log
    of_user, of_item = pl.len().over("user_id"), pl.len().over("item_id")
    enough = (of_user >= settings.min_user) & (of_item >= settings.min_item)
    rule = f"user below {settings.min_user} or item below {settings.min_item}"
    before = -1
    while len(log) != before:
        before = len(log)
        log = _keep(log, enough, rule, left_out)
        if settings.filter == "single-pass":
            # As the authors' code: sequences that the pass made too short go, items are not counted again.
            return _keep(
                log, of_user >= settings.min_user, f"sequence shorter than {settings.min_user} then", left_out
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
    valid, test = time_cuts(settings)
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
