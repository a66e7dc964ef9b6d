"""Data sets: what is read, what is rejected, how it is filtered, ordered and split."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemb_cli.config.data import DataSettings
from llmemb_cli.config.settings import load_settings
from llmemb_cli.datasets.create import create_workspace
from llmemb_cli.datasets.popularity import tail_items
from llmemb_cli.datasets.raw import Tally
from llmemb_cli.datasets.readers.chunks import LINE
from llmemb_cli.datasets.readers.tabular import read_table
from llmemb_cli.datasets.rules import NO_TIME, SECOND, apply_rules, check_interactions, split_column
from llmemb_cli.datasets.split import load_split
from llmemb_cli.errors import BadDataError, LlmembError, WrongUseError
from llmemb_cli.pipeline import data_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import stage_state

Row = tuple[str, str, int]


def log_rows(users: int = 120, items: int = 110, length: int = 6) -> list[Row]:
    """Every user touches `length` items, every item is touched about equally often."""
    return [(f"u{u}", f"i{(u * 7 + n * 13) % items}", 1_000_000 + n) for u in range(users) for n in range(length)]


def write_files(folder: Path, rows: list[Row], items: int = 110) -> tuple[Path, Path]:
    log, catalogue = folder / "log.csv", folder / "items.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    catalogue.write_text(
        "item_id,title,brand,review_count\n" + "".join(f"i{n},Item {n},Brand {n % 5},{n}\n" for n in range(items))
    )
    return log, catalogue


def build(folder: Path, log: Path, items: Path | None, **values: Any) -> Path:
    overrides = {"data.dataset": "custom", "data.interactions": str(log)} | {
        f"data.{k}": v for k, v in values.items()
    }
    if items:
        overrides["data.items"] = str(items)
    workspace, _ = create_workspace(folder / "ws", overrides, Reporter())
    return workspace.root


def test_custom_files_become_sequences_in_time_order(tmp_path: Path) -> None:
    rows = log_rows()
    root = build(tmp_path, *write_files(tmp_path, rows[::-1]))
    data = load_split(root / "data")
    assert (data.n_users, data.n_items) == (120, 110)
    ids = ["", *data.item_ids.to_list()]
    for user in range(data.n_users):
        mine = [i for u, i, _ in sorted(rows, key=lambda r: r[2]) if u == data.user_ids[user]]
        got = [ids[i] for i in data.train.row(user)]
        assert (got, ids[data.valid[user]], ids[data.test[user]]) == (mine[:-2], mine[-2], mine[-1])


def test_popularity_is_counted_on_training_rows_alone(tmp_path: Path) -> None:
    root = build(tmp_path, *write_files(tmp_path, log_rows()))
    data = load_split(root / "data")
    count = Counter(data.train.values.tolist())
    assert data.train_counts.tolist() == [count.get(i, 0) for i in range(data.n_items + 1)]
    assert data.train_counts.sum() == len(log_rows()) - 2 * data.n_users
    history = data.test_history()
    for user in range(data.n_users):
        assert history.row(user).tolist() == [*data.train.row(user).tolist(), data.valid[user]]


def test_two_files_of_one_name_are_counted_apart(tmp_path: Path) -> None:
    log, items = write_files(tmp_path, log_rows())
    for folder, file in (("log", log), ("items", items)):
        (tmp_path / folder).mkdir()
        file.rename(tmp_path / folder / "data.csv")
    root = build(tmp_path, tmp_path / "log" / "data.csv", tmp_path / "items" / "data.csv")
    stats = json.loads((root / "data" / "stats.json").read_text())
    assert stats["rows_read"] == {"log/data.csv": len(log_rows()), "items/data.csv": 110}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str) -> None:
    log, items = write_files(tmp_path, log_rows())
    frame = pl.read_csv(log)
    other = tmp_path / f"other.{suffix}"
    if suffix == "tsv":
        frame.write_csv(other, separator="\t")
    elif suffix == "jsonl":
        frame.write_ndjson(other)
    elif suffix == "parquet":
        frame.write_parquet(other)
    else:
        other.write_bytes(gzip.compress(log.read_bytes()) if suffix.endswith("gz") else log.read_bytes())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = build(tmp_path / "a", log, items), build(tmp_path / "b", other, items)
    for name in ("items.parquet", "interactions.parquet"):
        assert pl.read_parquet(one / "data" / name).equals(pl.read_parquet(two / "data" / name))


def test_each_kind_of_bad_line_is_a_counted_reject_with_its_line(tmp_path: Path) -> None:
    log, items = write_files(tmp_path, log_rows())
    good = len(log_rows())
    first = good + 2
    bad = ["u1,i1", "u1,nowhere,5", "u1,i1,soon", ",i1,5", "u1,,5", "u\x00,i1,5"]
    log.write_text(log.read_text() + "".join(line + "\n" for line in bad))
    with log.open("ab") as file:
        file.write(b"u1,\xff\xfe,7\n")
    items.write_text(items.read_text() + "i1,Again,Brand,1\nnothing,,,\n")
    root = build(tmp_path, log, items)
    stats = json.loads((root / "data" / "stats.json").read_text())
    rejects = [json.loads(line) for line in (root / "data" / "rejected.jsonl").read_text().splitlines()]
    assert all(set(reject) == {"file", "line", "reason", "text"} for reject in rejects)
    found = {(r["file"], r["line"]): r["reason"] for r in rejects}
    expected = {
        ("log.csv", first): "unreadable line: 2 fields where the header has 3",
        ("log.csv", first + 1): "unknown item",
        ("log.csv", first + 2): "timestamp is not a number or date",
        ("log.csv", first + 3): "no user id",
        ("log.csv", first + 4): "no item id",
        ("log.csv", first + 5): "unreadable line: NUL byte",
        ("log.csv", first + 6): "unreadable line: not UTF-8",
        ("items.csv", 112): "duplicate item id",
        ("items.csv", 113): "item without any attribute",
    }
    assert found == expected
    assert stats["rejected"] == len(expected)
    used = stats["interactions"] + sum(stats["left_out"].values())
    assert stats["rows_read"]["log.csv"] == used + sum(1 for name, _ in expected if name == "log.csv")


@pytest.mark.parametrize(
    ("content", "message", "code"),
    [
        (b"", "empty", 4),
        (b"user_id,item_id,timestamp\n", "no rows", 4),
        (b"who,item_id,timestamp\nu,i,1\n", "which column is the user", 2),
        (b"user_id,item_id,timestamp\nu1,i1,1\n", "only 0 users and 0 items", 4),
        (b"a,a\n1,2\n", "header", 4),
    ],
)
def test_a_file_that_cannot_be_used_leaves_nothing_behind(
    tmp_path: Path, content: bytes, message: str, code: int
) -> None:
    _, items = write_files(tmp_path, log_rows())
    log = tmp_path / "bad.csv"
    log.write_bytes(content)
    with pytest.raises(LlmembError, match=message) as caught:
        build(tmp_path, log, items)
    assert caught.value.exit_code == code
    assert not (tmp_path / "ws").exists()


def test_directory_missing_file_and_cut_gzip_are_named(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError, match="directory"):
        read_table(tmp_path)
    with pytest.raises(WrongUseError, match="no such file"):
        read_table(tmp_path / "none.csv")
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1000)[:-12])
    with pytest.raises(BadDataError, match="damaged or cut off"):
        read_table(cut)


def test_failed_second_preparation_keeps_the_first(tmp_path: Path) -> None:
    from llmemb_cli.datasets.prepare import prepare

    log, items = write_files(tmp_path, log_rows())
    root = build(tmp_path, log, items)
    before = (root / "data" / "interactions.parquet").read_bytes()
    log.write_text("")
    with pytest.raises(BadDataError, match="empty"):
        prepare(Workspace(root), load_settings(root / "llmemb.toml"), Reporter())
    assert (root / "data" / "interactions.parquet").read_bytes() == before


def test_init_again_is_up_to_date_and_other_settings_are_refused(tmp_path: Path) -> None:
    log, items = write_files(tmp_path, log_rows())
    root = build(tmp_path, log, items)
    stamp = (root / "data" / "manifest.json").stat().st_mtime_ns
    build(tmp_path, log, items)
    assert (root / "data" / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(WrongUseError, match="other data settings") as caught:
        build(tmp_path, log, items, min_user=4)
    assert "--name" in (caught.value.hint or "") and "llmemb.toml" in (caught.value.hint or "")


def test_a_source_whose_time_alone_changed_makes_nothing_stale(tmp_path: Path) -> None:
    log, items = write_files(tmp_path, log_rows())
    root = build(tmp_path, log, items)
    stage = partial(data_stage, Workspace(root), load_settings(root / "llmemb.toml"))
    for file in (log, items):
        os.utime(file, (1_000_000_000, 1_000_000_000))
    assert stage_state(stage()).state == "up-to-date"
    # As many bytes, others.
    content = log.read_bytes()
    log.write_bytes(content[:-2] + content[-2:].translate(bytes.maketrans(b"0123456789", b"1234567890")))
    os.utime(log, (1_000_000_001, 1_000_000_001))
    assert log.read_bytes() != content and log.stat().st_size == len(content)
    assert stage_state(stage()).reason == "file interactions changed"


def test_leaking_attributes_stay_out_of_prompts_unless_asked_for(tmp_path: Path) -> None:
    log, items = write_files(tmp_path, log_rows())
    root = build(tmp_path, log, items)
    assert json.loads((root / "data" / "stats.json").read_text())["attributes"] == ["title", "brand"]
    (tmp_path / "b").mkdir()
    root = build(tmp_path / "b", log, items, attributes=["review_count", "title"])
    assert json.loads((root / "data" / "stats.json").read_text())["attributes"] == ["review_count", "title"]


def test_milliseconds_and_dates_are_seconds(tmp_path: Path) -> None:
    rows = log_rows()
    log, items = write_files(tmp_path, rows)
    text = "user_id,item_id,timestamp\n" + "".join(
        f"{u},{i},{(1_400_000_000 + t) * 1000}\n" if n % 2 else f"{u},{i},2014-05-13T16:53:{t % 60:02d}Z\n"
        for n, (u, i, t) in enumerate(rows)
    )
    log.write_text(text)
    root = build(tmp_path, log, items)
    times = pl.read_parquet(root / "data" / "interactions.parquet")["timestamp"]
    assert times.min() == 1_400_000_020 and times.max() == 1_401_000_005


MOMENTS = st.integers(1_600_000_000_000_000, 1_600_000_003_000_000)  # microseconds: many in one second


def milliseconds(moment: int) -> str:
    return str(moment // 1000)


def iso(moment: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment)).isoformat()


@given(
    moments=st.lists(MOMENTS, min_size=1, max_size=12),
    form=st.sampled_from([milliseconds, iso, lambda moment: f"{moment // SECOND}.{moment % SECOND:06d}"]),
    block=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_the_order_within_a_second_is_kept_and_whole_seconds_are_stored(
    moments: list[int], form: Any, block: int
) -> None:
    rows = [("u", f"i{n}", form(moment), n) for n, moment in enumerate(moments)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", LINE], orient="row")
    parts = [check_interactions(log[at : at + block], None, "x", Tally()) for at in range(0, len(log), block)]
    got = apply_rules(pl.concat(parts, how="diagonal"), DataSettings(filter="none"), 1, Counter())
    known = [moment // 1000 if form is milliseconds else moment for moment in moments]
    expected = sorted(range(len(moments)), key=lambda n: (known[n], n))
    assert got["item_id"].to_list() == [f"i{n}" for n in expected]
    assert got["timestamp"].to_list() == [moments[n] // SECOND for n in expected]


WRITTEN = {
    "seconds": lambda when: str(int(when.timestamp())),
    "milliseconds": lambda when: str(int(when.timestamp()) * 1000),
    "microseconds": lambda when: str(int(when.timestamp()) * 10**6),
    "nanoseconds": lambda when: str(int(when.timestamp()) * 10**9),
    "digits": lambda when: f"{when:%Y%m%d%H%M%S}",
    "digits without seconds": lambda when: f"{when:%Y%m%d%H%M}",
    "space": lambda when: f"{when:%Y-%m-%d %H:%M:%S}",
    "utc": lambda when: f"{when:%Y-%m-%d %H:%M:%S} UTC",
    "utc with parts": lambda when: f"{when:%Y-%m-%d %H:%M:%S}.000000 UTC",
    "slashes": lambda when: f"{when:%Y/%m/%d %H:%M:%S}",
    "slashed day": lambda when: f"{when:%Y/%m/%d}",
    "points": lambda when: f"{when:%d.%m.%Y %H:%M}",
    "pointed day": lambda when: f"{when:%d.%m.%Y}",
}


@given(when=st.datetimes(datetime(1995, 1, 1), datetime(2099, 12, 31)), form=st.sampled_from(sorted(WRITTEN)))
@settings(max_examples=200, deadline=None)
def test_a_moment_is_the_same_however_it_is_written(when: datetime, form: str) -> None:
    when = when.replace(microsecond=0, tzinfo=UTC)
    text = WRITTEN[form](when)
    if "day" in form:
        when = when.replace(hour=0, minute=0, second=0)
    if form in ("digits without seconds", "points"):
        when = when.replace(second=0)
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [text], LINE: [2]})
    assert check_interactions(log, None, "x", Tally())["timestamp"].to_list() == [int(when.timestamp())]


EXCEL_DAY_0 = datetime(1899, 12, 30, tzinfo=UTC)  # as openpyxl and LibreOffice have it, for days from March 1900 on
TOLD = {
    "%m/%d/%Y %H:%M:%S": lambda when: f"{when:%m/%d/%Y %H:%M:%S}",
    "%d/%m/%Y %H:%M:%S": lambda when: f"{when:%d/%m/%Y %H:%M:%S}",
    "%d %b %Y, %I:%M:%S %p": lambda when: f"{when:%d %b %Y, %I:%M:%S %p}",
    "%Y-%j %H:%M:%S": lambda when: f"{when:%Y-%j %H:%M:%S}",
    "excel": lambda when: repr((when - EXCEL_DAY_0) / timedelta(days=1)),
}


@given(when=st.datetimes(datetime(1995, 1, 1), datetime(2099, 12, 31)), form=st.sampled_from(sorted(TOLD)))
@settings(max_examples=100, deadline=None)
def test_times_are_read_as_one_says_that_they_are_written(when: datetime, form: str) -> None:
    when = when.replace(microsecond=0, tzinfo=UTC)
    texts = [TOLD[form](when), f"{when:%Y-%m-%dT%H:%M:%SZ}"]
    log = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["i", "j"], "timestamp": texts, LINE: [2, 3]})
    tally = Tally()
    found = check_interactions(log, None, "x", tally, time_format=form)
    assert found["timestamp"].to_list() == [int(when.timestamp())]
    assert [(reject.line, reject.reason) for reject in tally.kept] == [(3, NO_TIME)]  # no other form is taken


@pytest.mark.parametrize("form", ["%Q", "month first", "%H:%M", "%Y-%m", "%", "%m/%d/%Y %"])
def test_a_form_without_a_day_is_refused_before_a_file_is_read(tmp_path: Path, form: str) -> None:
    with pytest.raises(WrongUseError, match="no form of a time"):
        build(tmp_path, tmp_path / "not-there.csv", None, time_format=form)


def test_a_form_that_is_not_recognised_is_told_and_how_to_say_it(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,date\nu,a,11/23/2014\nu,b,11/24/2014\nu,c,02/01/2015\n")
    with pytest.raises(BadDataError) as told:
        build(tmp_path / "a", tmp_path / "log.csv", None, filter="none")
    assert '--time-format "%m/%d/%Y"' in str(told.value.hint)
    root = build(tmp_path / "b", tmp_path / "log.csv", None, filter="none", allow_small=True, time_format="%m/%d/%Y")
    times = pl.read_parquet(root / "data" / "interactions.parquet")["timestamp"].to_list()
    assert [f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}" for time in times] == [
        "2014-11-23",
        "2014-11-24",
        "2015-02-01",
    ]


@pytest.mark.parametrize(
    "text", ["1e30", "99999999999999999999999", "20231316092054", "11/14/2023 22:13", "inf", "soon"]
)
def test_what_is_no_time_is_never_taken_for_one(text: str) -> None:
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [text], LINE: [2]})
    tally = Tally()
    found = check_interactions(log, None, "x", tally)
    assert found.is_empty() and [reject.line for reject in tally.kept] == [2]


def test_the_order_within_a_second_of_a_parquet_table_is_kept(tmp_path: Path) -> None:
    start = datetime(2020, 9, 13, 12, 26, 40)
    times = [start + timedelta(milliseconds=part) for part in (900, 500, 100)]
    pl.DataFrame({"user_id": ["u"] * 3, "item_id": list("cba"), "timestamp": times}).write_parquet(
        tmp_path / "log.parquet"
    )
    root = build(tmp_path, tmp_path / "log.parquet", None, filter="none", allow_small=True)
    log = pl.read_parquet(root / "data" / "interactions.parquet")
    assert log["item_id"].to_list() == list("abc") and log["timestamp"].to_list() == [1_600_000_000] * 3
    assert log.columns == ["user_id", "item_id", "timestamp", "rating", "split"]


def test_days_written_without_hyphens_are_days_and_a_mixture_is_told(tmp_path: Path) -> None:
    class Warned(Reporter):
        lines: list[str]

        def warn(self, message: str) -> None:
            self.lines.append(message)

    def days(name: str, times: list[str]) -> tuple[list[int], list[str]]:
        report = Warned()
        report.lines = []
        (tmp_path / f"{name}.csv").write_text("user_id,item_id,date\n" + "".join(f"u,i,{time}\n" for time in times))
        overrides = {"data.interactions": str(tmp_path / f"{name}.csv"), "data.filter": "none"}
        workspace, _ = create_workspace(tmp_path / name, overrides | {"data.allow_small": True}, report)
        return pl.read_parquet(workspace.data / "interactions.parquet")["timestamp"].to_list(), report.lines

    may, june = 1_399_939_200, 1_401_580_800
    assert days("all", ["20140513", "20140601.0", "2014-06-01", "soon"]) == (
        [may, june, june],
        [f"1 lines were not used, 25% of the interactions ({NO_TIME}): see data/rejected.jsonl"],
    )
    times, said = days("mixed", ["20140513", "20140601", "20141345"])
    assert times == [20140513, 20140601, 20141345] and "look like days" in said[0]
    assert days("seconds", ["1400000000", "20140513", "20140513000"])[1] == []


def test_a_sample_of_nobody_is_told_as_an_empty_set(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp,rating\nu,i,1,5\n")
    with pytest.raises(BadDataError, match="only 0 users and 0 items are left"):
        build(tmp_path, log, None, min_rating=9, sample=0.5)
    with pytest.raises(BadDataError, match="only 0 users and 0 items are left"):
        build(tmp_path, log, None, min_rating=9, max_users=3)


@given(
    rows=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=60),
    kind=st.sampled_from(["single-pass", "k-core", "none"]),
)
@settings(max_examples=60, deadline=None)
def test_filter_order_and_split_equal_a_plain_reference(rows: list[tuple[int, int, int]], kind: Any) -> None:
    chosen = DataSettings(filter=kind, min_user=3, min_item=2)
    log = pl.DataFrame(
        [(f"u{u}", f"i{i}", t, None) for u, i, t in rows],
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64},
        orient="row",
    )
    left_out: Counter[str] = Counter()
    kept = apply_rules(log, chosen, 1, left_out)
    got = split_column(kept, chosen)

    events = [(f"u{u}", f"i{i}", t, n) for n, (u, i, t) in enumerate(rows)]
    while kind != "none":
        users, items = Counter(e[0] for e in events), Counter(e[1] for e in events)
        fewer = [e for e in events if users[e[0]] >= 3 and items[e[1]] >= 2]
        if kind == "single-pass":
            users = Counter(e[0] for e in fewer)
            events = [e for e in fewer if users[e[0]] >= 3]
            break
        if len(fewer) == len(events):
            break
        events = fewer
    first = {u: min(n for n, r in enumerate(rows) if f"u{r[0]}" == u) for u in {e[0] for e in events}}
    events.sort(key=lambda e: (first[e[0]], e[2], e[3]))
    by_user: dict[str, list[str]] = defaultdict(list)
    for user, item, _, _ in events:
        by_user[user].append(item)
    expected = []
    for user, items_of in by_user.items():
        labels = ["train"] * len(items_of)
        if len(items_of) >= 3:
            labels[-2:] = ["valid", "test"]
        expected += [(user, item, label) for item, label in zip(items_of, labels, strict=True)]
    assert list(got.select("user_id", "item_id", "split").iter_rows()) == expected
    assert len(kept) + sum(left_out.values()) == len(rows)


def test_split_by_time_trains_on_nothing_from_the_future() -> None:
    log = pl.DataFrame(
        {
            "user_id": ["a"] * 6 + ["b"] * 2,
            "item_id": list("123456") + list("12"),
            "timestamp": [86400 * day for day in (1, 2, 10, 11, 20, 21, 10, 20)],
            "rating": [None] * 8,
        }
    )
    chosen = DataSettings(split="time", valid_from="1970-01-10", test_from="1970-01-20")
    got = split_column(log, chosen)["split"].to_list()
    assert got == ["train", "train", "valid", "later", "test", "later", "later", "later"]
    with pytest.raises(WrongUseError, match="not a date"):
        split_column(log, DataSettings(split="time", valid_from="tomorrow", test_from="1970-01-20"))


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=60), share=st.floats(0.05, 0.95))
def test_tail_items_are_never_more_popular_than_head_items(counts: list[int], share: float) -> None:
    array = np.array([0, *counts])
    tail = tail_items(array, share)
    assert not tail[0] and tail.sum() == round(len(counts) * share)
    if tail.any() and not tail[1:].all():
        assert array[tail].max() <= array[1:][~tail[1:]].min()
    assert (tail_items(array, share, threshold=4)[1:] == (array[1:] < 4)).all()


def test_grouplens_zip_and_recbole_tables_agree(tmp_path: Path) -> None:
    rows = log_rows(users=110)
    ratings = "".join(f"{u[1:]}\t{i[1:]}\t3\t{t}\n" for u, i, t in rows)
    genres = "|".join(["0", "1", "0", "0", "0", "1"] + ["0"] * 13)
    films = "".join(f"{n}|Caf\xe9 {n} (1995)|01-Jan-1995||http://x|{genres}\n" for n in range(110))
    with zipfile.ZipFile(tmp_path / "ml-100k.zip", "w") as archive:
        archive.writestr("ml-100k/u.data", ratings)
        archive.writestr("ml-100k/u.item", films.encode("latin-1"))
    folder = tmp_path / "recbole"
    folder.mkdir()
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(header + ratings)
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "".join(f"{n}\tCaf\xe9 {n}\t1995\tAction Comedy\n" for n in range(110))
    )
    frames = []
    for name, source in (("one", tmp_path / "ml-100k.zip"), ("two", folder)):
        workspace, _ = create_workspace(
            tmp_path / name, {"data.dataset": "ml-100k", "data.source": str(source)}, Reporter()
        )
        frames.append([pl.read_parquet(workspace.data / f"{t}.parquet") for t in ("items", "interactions")])
    assert frames[0][0].equals(frames[1][0]) and frames[0][1].equals(frames[1][1])
    assert frames[0][0]["title"][0] == "Caf\xe9 0" and frames[0][0]["genres"][0] == "Action, Comedy"


def test_command_line_prints_the_contract_and_asks_for_nothing_in_a_pipe(tmp_path: Path) -> None:
    log, items = write_files(tmp_path, log_rows())
    base = [sys.executable, "-m", "llmemb_cli", "init", "custom", "--name", "mine"]
    call = [*base, "--interactions", str(log), "--items", str(items), "--json"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    shown = json.loads(
        subprocess.run(
            [sys.executable, "-m", "llmemb_cli", "data", "--json"], cwd=tmp_path, capture_output=True, text=True
        ).stdout
    )
    for key in ("users", "items", "interactions", "density", "mean_length", "rejected"):
        assert shown[key] == document[key]
    assert set(shown["tail"]) >= {"items", "share_of_test"}
    assert shown["source"]["files"][0]["name"] == "log.csv" and len(shown["source"]["files"][0]["sha256"]) == 64
    log.write_text(log.read_text().replace("user_id", "person"))
    refused = subprocess.run([*base[:-1], "other", *call[7:]], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--user-column" in json.loads(refused.stdout)["error"]["hint"]
