"""The rules that turn raw rows into sequences: checks, filters, order, split. Frames in, frames out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from llmemb_cli.config.data import EXCEL, DataSettings, day_seconds, time_cuts
from llmemb_cli.datasets.raw import REASON, Tally
from llmemb_cli.datasets.readers.chunks import LINE
from llmemb_cli.seeds import numpy_rng

# 1e11 s is the year 5138: larger numbers are milliseconds, those a thousand times as large microseconds, and so on.
MILLISECONDS_FROM = 100_000_000_000
LATEST_SECOND = 253_402_300_800  # the year 10000
SECOND = 1_000_000  # microseconds
FRACTION = "\x00fraction"  # the column with the microseconds after a whole second, where there are any
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAYS_FROM, DAYS_TO = 1900_01_01, 2100_01_01  # whole numbers between may be days written so; as seconds they are 1970
SPLITS = ("train", "valid", "test", "later")
NO_TIME = "timestamp is not a number or date"
DATE_FORMS = (
    *("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"),
    *("%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S%.f UTC"),
    *("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d"),
    # 11/12/2023 is a day in November here and in December there: it is read where data.time_format says so.
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y"),
)
EXCEL_EPOCH = 25_569  # 1970-01-01 as a spreadsheet counts days
EXCEL_END = 2_958_466  # 10000-01-01
WRITTEN_DAYS = "days"  # all numbers are days such as 20140513, and no others are times
# Times written as digits, 20231116092054 and 202311160920: as milliseconds they would be of 2611 and of 1976.
SECONDS_WRITTEN = ("%Y%m%d%H%M%S", 1900_01_01_00_00_00, 2100_01_01_00_00_00)
MINUTES_WRITTEN = ("%Y%m%d%H%M", 1900_01_01_00_00, 2100_01_01_00_00)


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
        .alias(REASON)
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
    log: pl.DataFrame,
    among_known: Callable[[pl.Series], pl.Series] | None,
    name: str,
    tally: Tally,
    *,
    time_format: str = "",
) -> pl.DataFrame:
    """Usable interactions in a compact form; the rest is counted in `tally`.

    Args:
        log: `user_id`, `item_id`, `LINE`, optionally `timestamp` and `rating`, as text.
        among_known: of `item_lookup`.
        name: of the file, for rejects.
        tally: counts rejects.
        time_format: of `[data]`, or `WRITTEN_DAYS`.

    Returns:
        `user_id`, `item_id` (Categorical), `timestamp` (Int64, seconds), `rating` (Float32, null where unknown); and
        `FRACTION` (Int32, microseconds) where times are not whole seconds.
    """
    if "timestamp" not in log.columns:
        log = log.with_columns(pl.col(LINE).cast(pl.String).alias("timestamp"))
    if "rating" not in log.columns:
        log = log.with_columns(pl.lit(None, pl.String).alias("rating"))
    log = log.with_columns(
        _moments(log["timestamp"], time_format).alias("moment"),
        pl.col("rating").cast(pl.Float32, strict=False).alias("stars"),
        pl.col("user_id", "item_id").cast(pl.Categorical),
    )
    known = pl.lit(True) if among_known is None else pl.lit(among_known(log["item_id"]))
    # In order, as a row has one reason.
    faults = {
        "no user id": pl.col("user_id").is_null(),
        "no item id": pl.col("item_id").is_null(),
        "unknown item": ~known,
        "no timestamp": pl.col("timestamp").is_null(),
        NO_TIME: pl.col("moment").is_null(),
        "rating is not a number": pl.col("rating").is_not_null() & ~pl.col("stars").is_finite().fill_null(False),
    }
    if log.select(pl.any_horizontal(faults.values()).any()).item():
        reasons = [pl.when(fault).then(pl.lit(reason)) for reason, fault in faults.items()]
        log = tally.take(
            log.with_columns(pl.coalesce(reasons).alias(REASON)),
            name,
            ["user_id", "item_id", "timestamp", "rating"],
        )
    # What is kept, shown and compared with days are whole seconds; only the order knows more.
    usable = log.select(
        "user_id",
        "item_id",
        (pl.col("moment") // SECOND).alias("timestamp"),
        pl.col("stars").alias("rating"),
        (pl.col("moment") % SECOND).cast(pl.Int32).alias(FRACTION),
    )
    return usable if (usable[FRACTION] != 0).any() else usable.drop(FRACTION)


def written_as_days(log: pl.DataFrame) -> bool | None:
    """Whether all times that are numbers are days written as 20140513; None where no time is a number."""
    if "timestamp" not in log.columns:
        return False
    numbers = log["timestamp"].cast(pl.Float64, strict=False).drop_nulls()
    if numbers.is_empty():
        return None
    return _day_moments(numbers).null_count() == 0


def look_like_days(log: pl.DataFrame) -> bool:
    """Whether most of the times that were taken for seconds would be days: not all, or they had been read so."""
    return len(log) > 0 and log["timestamp"].is_between(DAYS_FROM, DAYS_TO, closed="left").sum() > len(log) / 2


def _moments(texts: pl.Series, time_format: str) -> pl.Series:
    """Times as microseconds since 1970, what is no time as null.

    Where no form is told: numbers (of smaller units where they are that large) and dates.
    """
    numbers = texts.cast(pl.Float64, strict=False)
    if time_format == EXCEL:
        return _excel_moments(numbers)
    if time_format not in ("", WRITTEN_DAYS):
        return _read_as(texts, time_format)
    moments = _day_moments(numbers) if time_format == WRITTEN_DAYS else _number_moments(numbers)
    # What is a number is a time in no other form: ISO 8601 takes some of 19 digits for days of the year 1700.
    unread = moments.is_null() & texts.is_not_null() & numbers.is_null()
    for form in DATE_FORMS:
        left = unread.arg_true()
        if len(left) == 0:
            return moments
        rest = texts if len(left) == len(texts) else texts.gather(left)
        dates = _read_as(rest, form)
        moments = dates if rest is texts else moments.scatter(left, dates)
        unread = unread & moments.is_null()
    left = unread.arg_true()
    table = {text: _iso_moment(text) for text in texts.gather(left).unique()}
    return moments.scatter(left, [table[text] for text in texts.gather(left)])


def _read_as(texts: pl.Series, form: str) -> pl.Series:
    return texts.str.to_datetime(form, strict=False, exact=True, time_unit="us").dt.epoch("us")


def _excel_moments(numbers: pl.Series) -> pl.Series:
    # Seconds as spreadsheets show them: a second is no whole part of a day, so that its fraction is only nearly one.
    seconds = ((numbers - EXCEL_EPOCH) * 86_400).round()
    usable = numbers.is_between(1, EXCEL_END, closed="left")
    return seconds.zip_with(usable.fill_null(False), pl.Series([None], dtype=pl.Float64)).cast(pl.Int64) * SECOND


def _number_moments(numbers: pl.Series) -> pl.Series:
    if numbers.null_count() == len(numbers):
        return numbers.cast(pl.Int64)
    number = pl.col(numbers.name)
    # Of so many digits what is no day and hour is no time: nobody means milliseconds of the year 2611.
    digits = number.is_between(*SECONDS_WRITTEN[1:], closed="left")
    value: pl.Expr = pl.when(number.is_finite() & ~digits).then(number)
    for _ in ("milliseconds", "microseconds", "nanoseconds"):
        value = pl.when(value.abs() >= MILLISECONDS_FROM).then(value / 1000).otherwise(value)
    value = pl.when(value.abs() < LATEST_SECOND).then(value)
    # Apart, as a product would round: the whole seconds stay what they are.
    after = ((value - value.floor()) * SECOND).round().clip(0, SECOND - 1).cast(pl.Int64)
    counted = value.floor().cast(pl.Int64) * SECOND + after
    forms = (SECONDS_WRITTEN, MINUTES_WRITTEN)
    # Of millions of rows only where there are such: most logs have none.
    written = [_written(number, *form) for form in forms if numbers.is_between(*form[1:], closed="left").any()]
    return numbers.to_frame().select(pl.coalesce(*written, counted)).to_series()


def _day_moments(numbers: pl.Series) -> pl.Series:
    return numbers.to_frame().select(_written(pl.col(numbers.name), "%Y%m%d", DAYS_FROM, DAYS_TO)).to_series()


def _written(number: pl.Expr, form: str, start: int, end: int) -> pl.Expr:
    """The moments that whole numbers from `start` to before `end` are, read as digits in this form."""
    whole = pl.when(number.is_between(start, end, closed="left") & (number == number.floor())).then(number)
    digits = whole.cast(pl.Int64).cast(pl.String)
    return digits.str.to_datetime(form, strict=False, exact=True, time_unit="us").dt.epoch("us")


def _iso_moment(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)
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

    Users stand in the order of their first row in the source; ties in time, to the microsecond, keep the source's
    order.
    """
    # Rules work on whole numbers in numpy: the log itself is copied once, and no order is left to a library's whim.
    user, item = _first_seen(log["user_id"]), _first_seen(log["item_id"])
    rows = time_order(user, _order_in_time(log))
    if settings.repeats != "keep":
        pairs = pl.Series(user[rows].astype(np.int64) << 32 | item[rows])
        once = pairs.is_first_distinct() if settings.repeats == "first" else pairs.is_last_distinct()
        rows = _pick(rows, once.to_numpy(), f"repeated, {settings.repeats} kept", left_out)
    if settings.sample is not None or settings.max_users is not None:
        rows = _pick(rows, _sample(user, settings, seed)[user[rows]], "user not sampled", left_out)
    rows = _filter_rare(rows, user, item, settings, left_out)
    return log.select("user_id", "item_id", "timestamp", "rating")[rows]


def _order_in_time(log: pl.DataFrame) -> np.ndarray:
    """(rows,) int64: times to sort by, seconds where all are whole."""
    times = log["timestamp"].to_numpy()
    if FRACTION not in log.columns:
        return times
    # LATEST_SECOND in microseconds is far from what an int64 holds.
    return times * SECOND + log[FRACTION].fill_null(0).to_numpy()


def _first_seen(ids: pl.Series) -> np.ndarray:
    """(rows,) int32: ids as numbers, in the order in which they first appear."""
    codes = ids.cast(pl.Categorical).to_physical().to_numpy()
    rows = np.arange(len(codes))
    first = np.full(int(codes.max(initial=0)) + 1, len(codes))
    np.minimum.at(first, codes, rows)
    is_first = first[codes] == rows
    return (np.cumsum(is_first, dtype=np.int32) - 1)[first[codes]]


def time_order(user: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(rows,) int: the rows by `user`, then by time (int64); ties stay as they are."""
    start, users = int(times.min(initial=0)), int(user.max(initial=0)) + 1
    span = int(times.max(initial=0)) - start + 1
    if users * span < 2**63:
        # One number a row: three times as fast as sorting by two.
        return np.argsort(user * np.int64(span) + (times - start), kind="stable")
    return np.lexsort((times, user))


def _pick(rows: np.ndarray, wanted: np.ndarray, rule: str, left_out: Counter[str]) -> np.ndarray:
    kept = rows[wanted]
    if len(kept) < len(rows):
        left_out[rule] += len(rows) - len(kept)
    return kept


def _sample(user: np.ndarray, settings: DataSettings, seed: int) -> np.ndarray:
    """(users,) bool: whether a user is kept."""
    users = int(user.max(initial=-1)) + 1
    if users == 0:
        return np.zeros(0, dtype=bool)  # a generator refuses to choose among none
    count = users if settings.sample is None else max(1, round(users * settings.sample))
    count = min(count, settings.max_users or count)
    chosen = np.zeros(users, dtype=bool)
    chosen[numpy_rng(seed, "sample-users").choice(users, count, replace=False)] = True
    return chosen


def _filter_rare(
    rows: np.ndarray, user: np.ndarray, item: np.ndarray, settings: DataSettings, left_out: Counter[str]
) -> np.ndarray:
    """Leave out rare users and items: once, or until nothing changes (k-core)."""
    if settings.filter == "none":
        return rows
    rule = f"user below {settings.min_user} or item below {settings.min_item}"
    before = -1
    while len(rows) != before:
        before = len(rows)
        enough = _often(user[rows], settings.min_user) & _often(item[rows], settings.min_item)
        rows = _pick(rows, enough, rule, left_out)
        if settings.filter == "single-pass":
            # As the authors' code: sequences that the pass made too short go, items are not counted again.
            long_enough = _often(user[rows], settings.min_user)
            return _pick(rows, long_enough, f"sequence shorter than {settings.min_user} then", left_out)
    return rows


def _often(codes: np.ndarray, least: int) -> np.ndarray:
    return (np.bincount(codes) >= least)[codes]


def split_column(log: pl.DataFrame, settings: DataSettings) -> pl.DataFrame:
    """Add `split`: train, valid (at most one row a user), test (at most one) or later.

    Leave-one-out: the last item tests, the one before validates, users with fewer than three only train.
    By time: a user's first row from `valid_from` on validates, the first from `test_from` on tests.

    Args:
        log: rows of a user together and in time order, as `apply_rules` gives them.
    """
    user = log["user_id"].rle_id().to_numpy()
    places = _leave_one_out(user) if settings.split == "leave-one-out" else _by_time(log, user, settings)
    return log.with_columns(pl.Series("split", places).cat.to(pl.Enum(SPLITS)).cast(pl.String))


def _leave_one_out(user: np.ndarray) -> np.ndarray:
    """(rows,) uint8, places in `SPLITS`."""
    lengths = np.bincount(user)
    last = np.cumsum(lengths) - 1
    last = last[lengths >= 3]
    places = np.full(len(user), SPLITS.index("train"), dtype=np.uint8)
    places[last - 1] = SPLITS.index("valid")
    places[last] = SPLITS.index("test")
    return places


def _by_time(log: pl.DataFrame, user: np.ndarray, settings: DataSettings) -> np.ndarray:
    """(rows,) uint8, places in `SPLITS`."""
    valid, test = time_cuts(settings)
    times = log["timestamp"].to_numpy()
    places = (times >= valid).astype(np.uint8) + (times >= test)
    trains = np.bincount(user, weights=places == 0) > 0
    repeated = (np.diff(user, prepend=-1) == 0) & (np.diff(places, prepend=0) == 0)
    places[(places > 0) & (repeated | ~trains[user])] = SPLITS.index("later")
    return places
