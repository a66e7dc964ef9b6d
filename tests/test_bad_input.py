"""Dirt, accidents and malice in what people pass to `llmemb init`: counted, named, and nothing half-made left."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmemb_cli.datasets.create import create_workspace
from llmemb_cli.datasets.readers import streams
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter
from tests.amazon_records import METADATA_2014, METADATA_2023, REVIEWS_2014, REVIEWS_2023
from tests.dataset_fixtures import Prepared, json_lines, prepare, python_lines, write_files
from tests.movielens_records import ML_1M, latest
from tests.yelp_records import YELP_2020

LOG = b"user_id,item_id,timestamp,rating\nu1,i1,10,5\nu1,i2,20,4\nu2,i1,30,3\n"
ITEMS = b"item_id,title,brand\ni1,One,A\ni2,Two,B\n"
REVIEWS, BUSINESSES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"


def custom(tmp_path: Path, log: bytes = LOG, items: bytes = ITEMS, suffix: str = "csv", **data: Any) -> Prepared:
    folder = write_files(tmp_path / "in", {f"log.{suffix}": log, f"items.{suffix}": items})
    return prepare(
        tmp_path / "ws",
        "custom",
        interactions=str(folder / f"log.{suffix}"),
        items=str(folder / f"items.{suffix}"),
        **data,
    )


def yelp(tmp_path: Path, **files: bytes) -> Prepared:
    named = {REVIEWS: files.get("reviews"), BUSINESSES: files.get("businesses")}
    given = {name: content for name, content in named.items() if content is not None}
    return prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_2020 | given))


def told(data: Prepared) -> list[tuple[str, int, str]]:
    assert data.accounts_for_every_row()
    return [(reject["file"], reject["line"], reject["reason"]) for reject in data.rejects]


# Accidents


@pytest.mark.parametrize("cut", [1, 8, 9, 40, 200])
def test_a_gzip_cut_off_is_named_and_nothing_is_left(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(os.urandom(300) + YELP_2020[REVIEWS] * 20)[:-cut]
    folder = write_files(tmp_path / "in", {f"{REVIEWS}.gz": packed, BUSINESSES: YELP_2020[BUSINESSES]})
    with pytest.raises(BadDataError, match="damaged or cut off") as caught:
        prepare(tmp_path / "ws", "yelp", source=folder)
    assert caught.value.where == str(folder / f"{REVIEWS}.gz") and not (tmp_path / "ws").exists()
    assert "get it again" in str(caught.value.hint)


def test_a_line_cut_in_half_is_one_reject(tmp_path: Path) -> None:
    data = yelp(tmp_path / "yelp", reviews=YELP_2020[REVIEWS][:-60])
    assert told(data) == [(REVIEWS, 3, "unreadable line: not a record (Unterminated string starting)")]
    assert len(data.log) == 2
    data = custom(tmp_path / "custom", LOG + b"u2,i", ITEMS + b'i3,"Thr')
    assert told(data) == [
        ("items.csv", 4, "unreadable line: a quote is never closed"),
        ("log.csv", 5, "unreadable line: 2 fields where the header has 4"),
    ]
    files = {"Beauty.json": json_lines(REVIEWS_2014), "meta_Beauty.json": python_lines(METADATA_2014)[:-30]}
    data = prepare(tmp_path / "amazon", "beauty", source=write_files(tmp_path / "in", files))
    assert told(data) == [("meta_Beauty.json", 3, "unreadable line: not a record (not a Python literal)")]


def test_nul_bytes_are_rejects(tmp_path: Path) -> None:
    reviews = (
        YELP_2020[REVIEWS].replace(b"pretty good", b"pretty\x00good").replace(b"2015-07-03", b"2015\\u0000-07-03")
    )
    businesses = YELP_2020[BUSINESSES].replace(b"Carlos", b"Carlos\\u0000")
    assert told(yelp(tmp_path / "yelp", reviews=reviews, businesses=businesses)) == [
        (BUSINESSES, 2, "unreadable line: NUL byte"),
        (REVIEWS, 2, "unreadable line: not a record (Invalid control character)"),
        (REVIEWS, 3, "unreadable line: NUL byte"),
    ]
    data = custom(tmp_path / "custom", LOG + b"u\x002,i2,40,3\n" + bytes(20) + b"\n", ITEMS + b"i3,Th\x00ree,C\n")
    assert told(data) == [
        ("items.csv", 4, "unreadable line: NUL byte"),
        ("log.csv", 5, "unreadable line: NUL byte"),
        ("log.csv", 6, "unreadable line: 1 fields where the header has 4"),
    ]


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\n\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_marks_blank_lines_and_windows_line_ends_change_nothing(
    tmp_path: Path, before: bytes, end: bytes
) -> None:
    def dirty(content: bytes) -> bytes:
        return before + content.replace(b"\n", end)

    plain = yelp(tmp_path / "yelp")
    other = yelp(tmp_path / "b", reviews=dirty(YELP_2020[REVIEWS]), businesses=dirty(YELP_2020[BUSINESSES]))
    assert other.log.equals(plain.log) and other.items.equals(plain.items) and not told(other)
    files = {"Beauty.json": json_lines(REVIEWS_2014), "meta_Beauty.json": python_lines(METADATA_2014)}
    amazon = prepare(tmp_path / "c", "beauty", source=write_files(tmp_path / "in c", files))
    files = {name: dirty(content) for name, content in files.items()}
    assert prepare(tmp_path / "d", "beauty", source=write_files(tmp_path / "in d", files)).log.equals(amazon.log)
    movies = prepare(tmp_path / "e", "ml-1m", source=write_files(tmp_path / "in e", ML_1M))
    files = {name: dirty(content) for name, content in ML_1M.items()}
    assert prepare(tmp_path / "f", "ml-1m", source=write_files(tmp_path / "in f", files)).log.equals(movies.log)
    if before == b"\xef\xbb\xbf":  # a table's header is its first line
        table = custom(tmp_path / "g")
        assert custom(tmp_path / "h", dirty(LOG), dirty(ITEMS)).log.equals(table.log)


class Warned(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


def test_latin_1_is_read_when_it_is_said_and_hinted_at_when_it_is_not(tmp_path: Path) -> None:
    log, items = LOG + "ü3,i1,40,5\n".encode("latin-1"), ITEMS + "i3,Café,C\n".encode("latin-1")
    data = custom(tmp_path, log, items, encoding="latin-1")
    assert data.log["user_id"].to_list()[-1] == "ü3" and not data.rejects
    euro = ITEMS + "i1x,€ 5,C\n".encode("cp1252") + b"i3,\x81,C\n"
    data = custom(tmp_path / "cp1252", LOG + b"u1,i1x,50,5\n", euro, encoding="cp1252")
    assert data.items["title"].to_list() == ["One", "Two", "€ 5"]
    assert told(data) == [("items.csv", 5, "unreadable line: not CP1252")]
    report = Warned()
    overrides = {
        "data.interactions": str(tmp_path / "in" / "log.csv"),
        "data.items": str(tmp_path / "in" / "items.csv"),
    }
    overrides |= {"data.allow_small": True, "data.filter": "none"}  # type: ignore[dict-item]
    create_workspace(tmp_path / "unsaid", overrides, report)
    assert report.lines == [
        "2 lines were not used, 25% of the interactions (most: unreadable line: not UTF-8, 2): see "
        "data/rejected.jsonl; 2 of them are not UTF-8: say how the text is written with --encoding latin-1 or cp1252"
    ]


def test_a_key_first_seen_in_the_last_line_is_an_attribute(tmp_path: Path) -> None:
    items = [{"item_id": f"i{n}", "title": f"Item {n}"} for n in range(12_000)] + [
        {"item_id": "last", "title": "Last", "late": "here"}
    ]
    log = [{"user_id": "u", "item_id": "i5", "timestamp": 1}] * 11_000 + [
        {"user_id": "u", "item_id": "last", "timestamp": 2, "rating": 5}
    ]
    data = custom(tmp_path, json_lines(log), json_lines(items), "jsonl")
    assert data.prompts()["last"].endswith("title is Last; late is here")
    data = custom(tmp_path / "b", json_lines(log), json_lines(items), "jsonl", rating_column="rating", min_rating=1)
    assert data.rows() == [("u", "last", 2)] and data.stats["left_out"] == {"no rating": 11_000}


# Names that the program has used itself for one thing or another.
TAKEN = ["line", "reason", "item_id", "user_id", "timestamp", "rating", "title", "seconds", "stars", "split", "item"]


@given(
    roles=st.permutations(TAKEN).map(lambda names: names[:4]),
    key_name=st.sampled_from(TAKEN),
    suffix=st.sampled_from(["csv", "jsonl", "parquet"]),
)
@settings(max_examples=60, deadline=None)
def test_columns_of_own_files_may_be_called_anything(
    tmp_path_factory: pytest.TempPathFactory, roles: list[str], key_name: str, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    user, item, time, stars = roles
    log = pl.DataFrame({time: ["30", "20", "10"], stars: ["5", "4", "3"], item: ["i1", "i2", "i1"], user: ["u"] * 3})
    # The items' file has every other name as an attribute, whatever the log calls its columns.
    names = [name for name in TAKEN if name not in (item, "title")]
    items = pl.DataFrame({item: ["i1", "i2"]} | {name: [f"{name} 1", f"{name} 2"] for name in names})
    for name, frame in (("log", log), ("items", items)):
        write = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[suffix]
        write(folder / f"{name}.{suffix}")
    files = {"interactions": str(folder / f"log.{suffix}"), "items": str(folder / f"items.{suffix}")}
    columns = {"user_column": user, "item_column": item, "time_column": time, "rating_column": stars}
    asked = [key_name] if key_name in names else []
    data = prepare(folder / "ws", "custom", **files, **columns, attributes=asked)
    assert data.log.select("user_id", "item_id", "timestamp", "rating").rows() == [
        *(("u", "i1", 10, 3.0), ("u", "i2", 20, 4.0), ("u", "i1", 30, 5.0)),
    ]
    here = {name: "item_id_2" if name == "item_id" else name for name in names}
    assert data.items["item_id"].to_list() == ["i1", "i2"]
    for name in names:
        assert data.items[here[name]].to_list() == [f"{name} 1", f"{name} 2"]
    assert not asked or data.stats["attributes"] == [here[key_name]]


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        ({"user_column": "item_id", "item_column": "item_id"}, "--user-column and --item-column"),
        ({"time_column": "item_id", "item_column": "item_id"}, "--item-column and --time-column"),
        ({"rating_column": "rating", "time_column": "rating"}, "--time-column and --rating-column"),
        ({"title_column": "item_id"}, "--item-column and --title-column"),
    ],
)
def test_one_column_cannot_be_two_things(tmp_path: Path, columns: dict[str, str], flags: str) -> None:
    with pytest.raises(WrongUseError, match=f"cannot be two things: {flags}"):
        custom(tmp_path, **columns)


def test_a_column_that_is_named_for_one_thing_is_not_guessed_for_another(tmp_path: Path) -> None:
    data = custom(tmp_path, time_column="rating")  # there is no column of ratings left
    assert data.rows() == [("u1", "i2", 4), ("u1", "i1", 5), ("u2", "i1", 3)]
    assert data.log["rating"].null_count() == 3
    log = LOG.replace(b"item_id", b"title")
    data = custom(tmp_path / "b", log, b"title,brand\ni1,A\ni2,B\n", item_column="title")
    assert data.items.rows() == [("i1", None, "A"), ("i2", None, "B")]


def test_a_column_that_only_ours_could_be_called_is_refused(tmp_path: Path) -> None:
    log = json_lines([{"user_id": "u", "item_id": "i1", "timestamp": 1}])
    items = json_lines([{"item_id": "i1", "title": "One", "\x00line": "7"}])
    with pytest.raises(BadDataError, match="holds a NUL byte"):
        custom(tmp_path, log, items, "jsonl")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_without_a_name_stays_out_of_prompts(tmp_path: Path, suffix: str) -> None:
    # pandas' to_csv writes its row numbers so.
    frame = pl.DataFrame({"": ["0", "1"], "item_id": ["i1", "i2"], "title": ["One", "Two"]})
    items = tmp_path / f"items.{suffix}"
    getattr(frame, f"write_{suffix}")(items)
    (tmp_path / "log.csv").write_bytes(LOG)
    data = prepare(tmp_path / "ws", "custom", interactions=str(tmp_path / "log.csv"), items=str(items))
    assert data.items.columns == ["item_id", "title"]
    assert data.prompts()["i1"].endswith("title is One")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_ties_in_time_keep_the_order_of_the_source(tmp_path: Path, suffix: str) -> None:
    # polars sorts and joins in any order unless asked: users, items and ties that no sort by value would leave so.
    count = 20_011
    rows = [(f"u{n * 7919 % 97}", f"i{n * 104_729 % 211}", (n * 31 % 5) // 2) for n in range(count)]
    names = sorted({item for _, item, _ in rows}, key=lambda item: hash(item[::-1]))
    log = [{"user_id": u, "item_id": i, "timestamp": t} for u, i, t in rows]
    items = [{"item_id": name, "title": name} for name in names]
    if suffix == "csv":
        text = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
        data = custom(tmp_path, text.encode(), b"item_id,title\n" + "".join(f"{n},{n}\n" for n in names).encode())
    else:
        data = custom(tmp_path, json_lines(log), json_lines(items), "jsonl")
    first: dict[str, int] = {}
    for place, (user, _, _) in enumerate(rows):
        first.setdefault(user, place)
    expected = sorted(range(count), key=lambda place: (first[rows[place][0]], rows[place][2], place))
    assert data.rows() == [rows[place] for place in expected]
    assert data.items["item_id"].to_list() == names


def test_numbers_as_strings_and_nulls_in_own_files(tmp_path: Path) -> None:
    log = [
        {"user_id": 7, "item_id": "1", "timestamp": "1400000000", "rating": "4.5"},
        {"user_id": "7", "item_id": 1.0, "timestamp": 1400000001.0, "rating": 4},
        {"user_id": 7.0, "item_id": 1, "timestamp": "1400000002000", "rating": None},
        {"user_id": None, "item_id": 1, "timestamp": 1, "rating": 1},
        {"user_id": 7, "item_id": 1, "timestamp": "", "rating": 1},
        {"user_id": 7, "item_id": 1, "timestamp": 1, "rating": "NaN"},
        {"user_id": 7, "item_id": 1, "timestamp": "1e300", "rating": 1},
    ]
    items = [{"item_id": 1, "title": None, "brand": 5.0, "tags": ["a", None, 2.5]}]
    data = custom(tmp_path, json_lines(log), json_lines(items), "jsonl")
    assert data.log.select("user_id", "item_id", "timestamp", "rating").rows() == [
        *(("7", "1", 1400000000, 4.5), ("7", "1", 1400000001, 4.0), ("7", "1", 1400000002, None)),
    ]
    assert data.items.select("title", "brand", "tags").rows() == [(None, "5", "a, 2.5")]
    assert [reason for _, _, reason in told(data)] == [
        *("no user id", "no timestamp", "rating is not a number", "timestamp is not a number or date"),
    ]


def test_duplicate_reviews_are_kept_or_collapsed_as_asked(tmp_path: Path) -> None:
    twice = YELP_2020[REVIEWS] * 2
    data = yelp(tmp_path, reviews=twice)
    assert len(data.log) == 6 and not told(data) and data.stats["left_out"] == {}
    for repeats in ("first", "last"):
        source = tmp_path / "in"
        once = prepare(tmp_path / repeats, "yelp", source=source, repeats=repeats)
        assert len(once.log) == 3 and once.stats["left_out"] == {f"repeated, {repeats} kept": 3}
        assert once.accounts_for_every_row()


def test_businesses_without_reviews_and_reviews_without_a_business(tmp_path: Path) -> None:
    lonely = {"business_id": "lonely", "name": "Nobody comes"}
    stray = {"user_id": "u", "business_id": "closed", "stars": 1.0, "date": "2016-03-09 00:00:00"}
    data = yelp(
        tmp_path,
        reviews=YELP_2020[REVIEWS] + json_lines([stray] * 3),
        businesses=YELP_2020[BUSINESSES] + json_lines([lonely, lonely]),
    )
    assert told(data) == [
        (BUSINESSES, 4, "duplicate item id"),
        *((REVIEWS, line, "unknown item") for line in (4, 5, 6)),
    ]
    assert data.stats["items_without_interactions"] == 1 and "lonely" not in data.items["item_id"].to_list()
    assert data.rejects[1]["text"] == "u, closed, 2016-03-09 00:00:00, 1"


def test_the_first_hundred_of_each_reason_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    stray = {"user_id": "u", "business_id": "closed", "stars": 1.0, "date": "2016-03-09 00:00:00"}
    bad = json_lines([stray]) * 250 + b"{broken\n" * 130 + b"[]\n" * 5
    data = yelp(tmp_path, reviews=YELP_2020[REVIEWS] + bad)
    assert data.stats["rejected_by_reason"] == {
        "unknown item": 250,
        "unreadable line: not a record (Expecting property name enclosed in double quotes)": 130,
        "unreadable line: not a record (not a JSON object)": 5,
    }
    lines: dict[str, list[int]] = {}
    for _, line, reason in told(data):
        lines.setdefault(reason, []).append(line)
    assert sorted(lines.values()) == [[*range(4, 104)], [*range(254, 354)], [*range(384, 389)]]
    assert "| rejected: unknown item | -250 |" in (data.workspace.data / "card.md").read_text()


DIRT = [
    b"\x00",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"user_id":1}',
    b"u,i",
    b'"',
    b"a,b,c,d",
    b"::",
    b"x::y::z::1",
    b"9,9,9,9",
    b" ",
]


@given(places=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(DIRT)), max_size=8))
@settings(max_examples=15, deadline=None)
def test_rows_read_are_rows_used_and_rows_rejected(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, bytes]]
) -> None:
    def dirty(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        for place, dirt in places:
            lines.insert(1 + place % len(lines), dirt + b"\n")
        return b"".join(lines)

    tmp_path = tmp_path_factory.mktemp("dirt")
    amazon = {"All_Beauty.jsonl": json_lines(REVIEWS_2023), "meta_All_Beauty.jsonl": json_lines(METADATA_2023)}
    for name, files in (("yelp", YELP_2020), ("all-beauty", amazon), ("ml-1m", ML_1M), ("ml-32m", latest("ml-32m"))):
        used = {path: dirty(content) for path, content in files.items() if not path.endswith((".pdf", "user.json"))}
        data = prepare(tmp_path / f"ws {name}", name, source=write_files(tmp_path / name, used))
        assert data.accounts_for_every_row(), name
    data = custom(tmp_path, dirty(LOG), dirty(ITEMS))
    assert data.accounts_for_every_row()


# Malice


def test_a_bomb_ends_init_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FROM", 1 << 20)
    bomb = gzip.compress(b"\n" * (8 << 20), 9)
    folder = write_files(tmp_path / "in", {f"{REVIEWS}.gz": bomb, BUSINESSES: YELP_2020[BUSINESSES]})
    with pytest.raises(BadDataError, match="200 times its size") as caught:
        prepare(tmp_path / "ws", "yelp", source=folder)
    assert caught.value.exit_code == 4 and not (tmp_path / "ws").exists()


def test_a_line_without_end_is_one_reject(tmp_path: Path) -> None:
    long = b'{"user_id": "' + b"x" * (17 << 20) + b'"}\n'
    data = yelp(tmp_path, reviews=YELP_2020[REVIEWS] + long + YELP_2020[REVIEWS])
    assert told(data) == [(REVIEWS, 4, "unreadable line: too long")] and len(data.log) == 6
    assert len(data.rejects[0]["text"]) <= 500


def test_nothing_left_is_no_data_set_even_by_force(tmp_path: Path) -> None:
    for rule, why in (({"min_rating": 6.0}, "rating below 6"), ({"filter": "k-core"}, "below 3")):
        with pytest.raises(BadDataError, match=f"only 0 users and 0 items are left.*{why}") as caught:
            prepare(tmp_path / "ws", "yelp", source=write_files(tmp_path / "in", YELP_2020), **rule)
        assert "--force" not in str(caught.value.hint) and not (tmp_path / "ws").exists()


def test_what_is_no_table_at_all_is_told(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.csv", bytes(1000), "no text"),
        ("b.csv", "user_id,item_id\n".encode("utf-16"), "UTF-16"),
        ("c.jsonl", b"\x89PNG\r\n\x1a\n" * 50, "no line is a JSON object"),
        ("d.parquet", b"PAR1 not really", "not a readable Parquet file"),
        ("e.csv", b"", "empty"),
        ("f.jsonl", b"\n\n \n", "no line is a JSON object"),
    ):
        path = write_files(tmp_path / "in", {name: content}) / name
        with pytest.raises(BadDataError, match=message) as caught:
            prepare(tmp_path / "ws", "custom", interactions=str(path))
        assert name in str(caught.value.where) and not (tmp_path / "ws").exists()
    (tmp_path / "pipe.csv").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(WrongUseError, match="device or pipe"):
        prepare(tmp_path / "ws", "custom", interactions=str(tmp_path / "pipe.csv"))


def test_text_in_rejects_is_valid_json_lines(tmp_path: Path) -> None:
    nasty = [b"\xff\xfe\x00", b'"\\ud800"', "\u2028\u0085".encode(), b"\x1b[31m", b"x" * 10_000]
    data = yelp(tmp_path, reviews=YELP_2020[REVIEWS] + b"\n".join(nasty))
    text = (data.workspace.data / "rejected.jsonl").read_text(encoding="utf-8")
    assert len([json.loads(line) for line in text.split("\n") if line]) == len(nasty) == data.stats["rejected"]
