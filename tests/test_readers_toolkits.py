"""The layouts other toolkits write: RecBole's typed tables, and sequence files of SASRec-style repositories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmemb_cli.errors import BadDataError, WrongUseError
from tests.dataset_fixtures import Prepared, prepare, tar_of, write_files, zip_of

ITEM = "The item has the following attributes:\n"
AMAZON_INTER = (
    b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    b"A1YJEY40YUW4SE\t7806397051\t1.0\t1391040000\n"
    b"A60XNB876KYML\t7806397051\t3.0\t1397779200.0\n"
    b"A1YJEY40YUW4SE\tB00004TMFE\t5.0\t1378425600\n"
)
AMAZON_ITEM = (
    "item_id:token\tsales_type:token\tsales_rank:float\tcategories:token_seq\ttitle:token\tprice:float\tbrand:token\n"
    "7806397051\tBeauty\t211836.0\t'Beauty', 'Makeup'\tWAWO 15 Color \"Professionl\" Palette\t3.17\tWawo\n"
    'B00004TMFE\t\t\t\tPhilips Rasierer, 5" für Männer\t\t\n'
).encode()
YELP_INTER = (
    b"review_id:token\tuser_id:token\tbusiness_id:token\tstars:float\tuseful:float\tdate:float\n"
    b"r1\tak0TdVmGKo4pwqdJSTLwWw\tf9NumwFMBDn751xgFiRbNA\t4.0\t3.0\t1413000000.0\n"
    b"r2\tak0TdVmGKo4pwqdJSTLwWw\tYzvjg0SayhoZgCljUJRF9Q\t1.0\t0.0\t1457481600.0\n"
)
YELP_ITEM = (
    b"business_id:token\titem_name:token_seq\taddress:token_seq\tcity:token_seq\tstate:token\tpostal_code:token\t"
    b"latitude:float\tlongitude:float\titem_stars:float\titem_review_count:float\tis_open:float\tcategories:token_seq\n"
    b"f9NumwFMBDn751xgFiRbNA\tThe Range\t10913 Bailey Rd\tCornelius\tNC\t28031\t35.46\t-80.85\t3.5\t36.0\t1.0\t"
    b"Guns, Shopping\n"
    b"Yzvjg0SayhoZgCljUJRF9Q\tCarlos Santo\t\tScottsdale\tAZ\t85258\t33.57\t-111.89\t5.0\t4.0\t0.0\t\n"
)


def recbole(tmp_path: Path, inter: bytes, item: bytes, **data: Any) -> Prepared:
    folder = write_files(tmp_path / "in", {"x.inter": inter, "x.item": item, "x.user": b"user_id:token\nu\n"})
    return prepare(tmp_path / "ws", "recbole", source=folder, **data)


def test_recbole_s_amazon_is_read_without_what_leaks(tmp_path: Path) -> None:
    data = recbole(tmp_path, AMAZON_INTER, AMAZON_ITEM)
    assert data.rows() == [
        ("A1YJEY40YUW4SE", "B00004TMFE", 1378425600),
        ("A1YJEY40YUW4SE", "7806397051", 1391040000),
        ("A60XNB876KYML", "7806397051", 1397779200),
    ]
    assert data.log["rating"].to_list() == [5, 1, 3]
    assert data.prompts() == {
        "7806397051": ITEM + 'title is WAWO 15 Color "Professionl" Palette; type is Beauty; '
        "categories is 'Beauty', 'Makeup'; price is 3.17; brand is Wawo",
        "B00004TMFE": ITEM + 'title is Philips Rasierer, 5" für Männer',
    }
    assert data.accounts_for_every_row() and not data.rejects


def test_recbole_s_yelp_calls_stars_and_review_counts_by_other_names(tmp_path: Path) -> None:
    data = recbole(tmp_path, YELP_INTER, YELP_ITEM)
    assert data.rows() == [
        ("ak0TdVmGKo4pwqdJSTLwWw", "f9NumwFMBDn751xgFiRbNA", 1413000000),
        ("ak0TdVmGKo4pwqdJSTLwWw", "Yzvjg0SayhoZgCljUJRF9Q", 1457481600),
    ]
    assert data.log["rating"].to_list() == [4, 1]
    assert data.prompts()["f9NumwFMBDn751xgFiRbNA"] == (
        ITEM
        + "title is The Range; address is 10913 Bailey Rd; city is Cornelius; state is NC; postal_code is 28031; "
        "latitude is 35.46; longitude is -80.85; categories is Guns, Shopping"
    )
    leaking = prepare(tmp_path / "leaking", "recbole", source=tmp_path / "in", leaking=True)
    assert "stars is 3.5; review_count is 36.0; is_open is 1.0" in leaking.prompts()["f9NumwFMBDn751xgFiRbNA"]


def test_recbole_archives_and_oddities(tmp_path: Path) -> None:
    item = b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tgenre:token_seq\tname:token\n"
    item += b"267\tunkonwn\tunkonwn\tunknown\t\tn\n1412\tLand Before Time III\tV\tAnimation Children's\tx y\t\n"
    inter = b"user_id:token\titem_id:token\titem_id_list:token_seq\nu\t267\t1 2\nu\t1412\t267\n"
    data = recbole(tmp_path, inter, item)
    assert data.items.rows() == [
        ("267", "unkonwn", None, "unknown", None, "n"),
        ("1412", "Land Before Time III", None, "Animation, Children's", "x y", None),
    ]
    assert data.items.columns == ["item_id", "title", "year", "genres", "genre", "name"]
    assert [row[1] for row in data.rows()] == ["267", "1412"]  # without times the lines are in order
    files = {"ml/x.inter": inter, "ml/x.item": item}
    for name, content in (("a.zip", zip_of(files)), ("a.tgz", tar_of(files, "gz"))):
        (tmp_path / name).write_bytes(content)
        packed = prepare(tmp_path / f"ws {name}", "recbole", source=tmp_path / name)
        assert packed.log.equals(data.log) and packed.items.equals(data.items)


@pytest.mark.parametrize(
    ("inter", "item", "message"),
    [
        (b"a:token\tb:token\n1\t2\n", b"item_id:token\tt:token\n1\tx\n", "no user_id among the columns a, b"),
        (AMAZON_INTER, b"id:token\ttitle:token\n1\tx\n", "no column item_id; there are: id, title"),
        (AMAZON_INTER, b"", "empty|header"),
        (AMAZON_INTER, b"item_id:token\ttitle:token\n", "no rows"),
        (AMAZON_INTER, b"item_id:token\titem_id:float\n1\t2\n", "distinct column names"),
    ],
)
def test_recbole_tables_that_cannot_be_used_are_told(tmp_path: Path, inter: bytes, item: bytes, message: str) -> None:
    with pytest.raises((WrongUseError, BadDataError), match=message) as caught:
        recbole(tmp_path, inter, item)
    assert "x.i" in str(caught.value.where) and not (tmp_path / "ws").exists()


def test_recbole_needs_a_folder_with_both_tables(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError, match="which folder"):
        prepare(tmp_path / "ws", "recbole")
    folder = write_files(tmp_path / "in", {"x.inter": AMAZON_INTER})
    with pytest.raises(WrongUseError, match="no file with the items"):
        prepare(tmp_path / "ws", "recbole", source=folder)
    write_files(folder, {"x.item": AMAZON_ITEM, "y.item": AMAZON_ITEM})
    with pytest.raises(WrongUseError, match=r"several files could be the items: x\.item, y\.item"):
        prepare(tmp_path / "ws", "recbole", source=folder)
    assert prepare(tmp_path / "ws", "recbole", source=folder / "y.item").stats["interactions"] == 3


# Sequences

WIDE = b"1 10 11 12\n2 11\n1 13\n"
LONG = b"1 10\n1 11\n2 11\n1 12\n1 13\n"
TEXTS = '10\tFoo, "the" bar, bar\n11\tÉté\n12\tTwelve\n13\tThirteen\n'.encode()


def sequences(tmp_path: Path, log: bytes, name: str = "", texts: bytes = b"", **data: Any) -> Prepared:
    folder = write_files(tmp_path / "in", {"beauty.txt": log} | ({name: texts} if name else {}))
    items = {"items": str(folder / name)} if name else {}
    return prepare(tmp_path / "ws", "sequences", source=folder / "beauty.txt", **items, **data)


@pytest.mark.parametrize("log", [WIDE, LONG, WIDE.replace(b" ", b"\t"), WIDE.replace(b"\n", b"\r\n"), WIDE[:-1]])
def test_both_forms_of_sequence_files_say_the_same(tmp_path: Path, log: bytes) -> None:
    data = sequences(tmp_path, log, "texts.txt", TEXTS)
    assert data.rows() == [("1", "10", 0), ("1", "11", 1), ("1", "12", 2), ("1", "13", 3), ("2", "11", 0)]
    assert data.prompts() == {
        "10": ITEM + 'title is Foo, "the" bar, bar',
        "11": ITEM + "title is Été",
        "12": ITEM + "title is Twelve",
        "13": ITEM + "title is Thirteen",
    }
    assert data.stats["rows_read"] == {"texts.txt": 4, "beauty.txt": 5} and data.accounts_for_every_row()


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("t.csv", b'item_id,name,brand,rating\n10,"Foo, bar",B,3\n11,Bar,,4\n12,T,,\n13,T,,\n'),
        ("t.tsv", b"asin\ttitle\tbrand\trating\n10\tFoo, bar\tB\t3\n11\tBar\t\t4\n12\tT\t\t\n13\tT\t\t\n"),
        (
            "t.jsonl",
            b'{"brand":"B","item":10,"title":"Foo, bar","rating":3}\n{"item":"11","title":"Bar","rating":4}\n'
            b'{"item":12,"title":"T"}\n{"item":13,"title":"T"}\n',
        ),
    ],
)
def test_item_texts_may_be_a_table(tmp_path: Path, name: str, texts: bytes) -> None:
    data = sequences(tmp_path, WIDE, name, texts)
    assert data.prompts()["10"] == ITEM + "title is Foo, bar; brand is B"
    assert data.prompts()["11"] == ITEM + "title is Bar"
    assert "rating" in data.items.columns and "rating" not in data.stats["attributes"]


def test_columns_of_the_text_table_can_be_named(tmp_path: Path) -> None:
    texts = b"key,label\n10,Foo\n11,Bar\n12,T\n13,T\n"
    with pytest.raises(WrongUseError, match="which column is the item") as caught:
        sequences(tmp_path, WIDE, "t.csv", texts)
    assert caught.value.hint == "--item-column NAME"
    data = sequences(tmp_path, WIDE, "t.csv", texts, item_column="key", title_column="label")
    assert data.prompts()["10"] == ITEM + "title is Foo"
    with pytest.raises(WrongUseError, match="which column is the item"):
        sequences(tmp_path / "b", WIDE, "t.csv", texts, item_column="nope")


def test_texts_in_latin_1_are_read_when_it_is_said(tmp_path: Path) -> None:
    texts = TEXTS.decode().encode("latin-1")
    assert sequences(tmp_path, WIDE, "t.txt", texts, encoding="latin-1").prompts()["11"] == ITEM + "title is Été"
    data = sequences(tmp_path / "b", WIDE, "t.txt", texts)
    assert {(r["line"], r["reason"]) for r in data.rejects if r["file"] == "t.txt"} == {
        (2, "unreadable line: not UTF-8")
    }


def test_sequences_without_texts_and_with_bad_lines(tmp_path: Path) -> None:
    data = sequences(tmp_path, b"1 10 11\n\n \n3\n4 \xff\n5 a\x00b\n1 12\n")
    assert data.rows() == [("1", "10", 0), ("1", "11", 1), ("1", "12", 2)]
    assert [(r["line"], r["reason"]) for r in data.rejects] == [
        (4, "unreadable line: not a user and items"),
        (5, "unreadable line: not UTF-8"),
        (6, "unreadable line: not a user and items"),
    ]
    assert data.stats["rows_read"] == {"beauty.txt": 6} and data.stats["attributes"] == []
    with pytest.raises(WrongUseError, match="which file"):
        prepare(tmp_path / "none", "sequences")
    with pytest.raises(BadDataError, match="no rows"):
        sequences(tmp_path / "blank", b"\n \n")
    with pytest.raises(BadDataError, match="only 0 users"):
        sequences(tmp_path / "strange", WIDE, "t.txt", b"99\tNinety-nine\n")
