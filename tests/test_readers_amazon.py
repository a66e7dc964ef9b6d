"""Amazon reviews: three editions, told apart by their lines."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmemb_cli.datasets.amazon import CATEGORIES, EDITIONS, categories_by_name
from llmemb_cli.datasets.presets import PRESETS, find_preset
from llmemb_cli.datasets.readers.catalogue import parse_literal, parse_python_object, plain_text
from llmemb_cli.errors import BadDataError, WrongUseError
from tests.amazon_records import (
    ALL_BEAUTY_2023,
    BEAUTY_2014,
    FASHION_2018,
    METADATA_2014,
    METADATA_2018,
    METADATA_2023,
    REVIEWS_2014,
    REVIEWS_2018,
    REVIEWS_2023,
)
from tests.dataset_fixtures import Record, json_lines, prepare, python_lines, tar_of, write_files, zip_of


def test_2014_metadata_are_python_dictionaries(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "beauty", source=write_files(tmp_path / "in", BEAUTY_2014))
    assert data.rows() == [
        ("A1YJEY40YUW4SE", "B00004TMFE", 1378425600),
        ("A1YJEY40YUW4SE", "7806397051", 1391040000),
        ("A60XNB876KYML", "7806397051", 1397779200),
    ]
    assert data.log["rating"].to_list() == [5, 1, 3]
    assert data.prompts() == {
        "7806397051": "The beauty item has the following attributes:\n"
        "title is WAWO 15 Color Professionl Makeup Eyeshadow Camouflage Facial Concealer Neutral Palette; "
        "brand is Wawo; categories is Beauty, Makeup, Face, Concealers & Neutralizers; price is 3.17; "
        'description is WAWO 15 Color Professionl Makeup Eyeshadow & Camouflage Palette it\'s "new"',
        "B00004TMFE": "The beauty item has the following attributes:\n"
        "title is Philips Norelco Shaver — été; categories is Beauty; price is 12",
    }
    assert data.items.select("sales_rank").to_series().to_list() == ["Beauty: 211836", None]
    assert data.stats["source"]["edition"] == "Amazon 2014 (May 1996 to July 2014)"
    # The u'' line and the one without a review were read and have no interaction.
    assert data.stats["rows_read"] == {"meta_Beauty.json.gz": 4, "reviews_Beauty.json.gz": 3}
    assert data.stats["items_without_interactions"] == 2 and data.accounts_for_every_row()


def test_2018_values_are_lists_and_dirty_texts(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "fashion", source=write_files(tmp_path / "in", FASHION_2018))
    assert data.rows() == [
        ("A5ET5U2P2TJGO", "B0000Y3NO6", 1493596800),
        ("A5ET5U2P2TJGO", "B00N31IGPO", 1514764800),
    ]
    assert data.prompts() == {
        "B0000Y3NO6": "The fashion item has the following attributes:\n"
        "title is Shave Soap & Bowl; brand is Truefitt & Hill; price is $85.00; features is 3.5 ounces, In a bowl; "
        'description is Soap with a bowl., Smells of "wood".; '
        "details is Product Dimensions: 2.2 x 2.2 x 3.1 inches ; 1.76 ounces, Shipping Weight: 6.4 ounces",
        "B00N31IGPO": "The fashion item has the following attributes:\n"
        "brand is Speed Dealer Customs; categories is Clothing, Shoes & Jewelry, Women, Dresses; "
        "features is 100% cotton",
    }
    assert data.items.select("sales_rank", "date").rows() == [
        ("186,829 in Beauty & Personal Care (", "June 12, 2014"),
        (">#2,242,653 in Clothing, >#99 in Dresses", None),
    ]
    assert data.stats["unreadable_values"] == {"price": 1}
    assert data.stats["source"]["edition"] == "Amazon 2018 (May 1996 to October 2018)"
    assert [(r["line"], r["reason"], r["text"]) for r in data.rejects] == [(3, "duplicate item id", "B0000Y3NO6")]
    assert data.accounts_for_every_row()


def test_2023_counts_in_milliseconds_and_by_parent(tmp_path: Path) -> None:
    data = prepare(tmp_path / "ws", "all-beauty", source=write_files(tmp_path / "in", ALL_BEAUTY_2023))
    assert data.rows() == [
        ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B081TJ8YS3", 1588615855),
        ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8EO", 1588687728),
        ("AE74DYR3QUGVPZJ3P7RFWBGIX7XQ", "B097R46CSY", 1589665266),
    ]
    assert data.prompts() == {
        "B00YQ6X8EO": "The all beauty item has the following attributes:\n"
        "title is Howard LC0008 Leather Conditioner, 8-Ounce (4-Pack); brand is Howard Products; "
        "details is Package Dimensions: 7.1 x 5.5 x 3 inches; 2.38 Pounds, UPC: 617390882781",
        "B081TJ8YS3": "The all beauty item has the following attributes:\n"
        "title is Yes to Tomatoes Detoxifying Charcoal Cleanser (Pack of 2); "
        "categories is Beauty & Personal Care, Skin Care; features is Cleans, Detoxifies; "
        "description is From the tomato; "
        "details is Item Form: Powder, Skin Type: Acne Prone, Is Discontinued By Manufacturer: No",
        "B097R46CSY": "The all beauty item has the following attributes:\n"
        "title is Eye Patch Black Adult with Tie Band (6 Per Pack); brand is Levine Health Products; price is 12.99",
    }
    assert data.items.select("average_rating", "rating_number").rows() == [
        *(("4.8", "10"), ("4.5", "3"), ("4.1", "2000")),
    ]
    assert data.stats["unreadable_values"] == {"price": 1}
    assert data.stats["source"]["edition"] == "Amazon 2023 (May 1996 to September 2023)"
    assert "price" in (data.workspace.data / "card.md").read_text()


@pytest.mark.parametrize(
    ("edition", "preset", "files"),
    [("2014", "beauty", BEAUTY_2014), ("2018", "fashion", FASHION_2018), ("2023", "all-beauty", ALL_BEAUTY_2023)],
)
def test_an_edition_that_the_lines_contradict_is_refused(
    tmp_path: Path, edition: str, preset: str, files: dict[str, bytes]
) -> None:
    source = write_files(tmp_path / "in", files)
    assert prepare(tmp_path / "same", preset, source=source, edition=edition).stats["interactions"] > 0
    for other in EDITIONS.keys() - {edition}:
        with pytest.raises(BadDataError, match=f"of edition {edition}, not {other}") as caught:
            prepare(tmp_path / other, preset, source=source, edition=other)
        assert caught.value.hint == f"--edition {edition}" and not (tmp_path / other).exists()
    with pytest.raises(WrongUseError, match="no Amazon edition 2019"):
        prepare(tmp_path / "x", preset, source=source, edition="2019")


def test_reviews_without_an_edition_s_marks_need_it_said(tmp_path: Path) -> None:
    bare = [{key: row[key] for key in ("reviewerID", "asin", "unixReviewTime", "overall")} for row in REVIEWS_2014]
    files = {"Beauty.json": json_lines(bare), "meta_Beauty.json": python_lines(METADATA_2014)}
    source = write_files(tmp_path / "in", files)
    with pytest.raises(BadDataError, match="of no known edition; their keys are asin, overall") as caught:
        prepare(tmp_path / "ws", "beauty", source=source)
    assert "--edition" in str(caught.value.hint) and "llmemb init custom" in str(caught.value.hint)
    assert prepare(tmp_path / "ws", "beauty", source=source, edition="2014").stats["interactions"] == 3
    strange = write_files(tmp_path / "strange", files | {"Beauty.json": json_lines([{"verified": True, "who": 1}])})
    with pytest.raises(BadDataError, match="of no known edition"):
        prepare(tmp_path / "other", "beauty", source=strange)


@pytest.mark.parametrize("form", ["file", "five core", "plain", "tar", "tgz", "zip", "metadata"])
def test_files_are_found_in_every_form(tmp_path: Path, form: str) -> None:
    plain = {
        "reviews_Beauty.json": json_lines(REVIEWS_2014),
        "meta_Beauty.json": gzip.decompress(BEAUTY_2014["meta_Beauty.json.gz"]),
    }
    folder = write_files(tmp_path / "in", BEAUTY_2014)
    source = {
        "file": folder / "reviews_Beauty.json.gz",
        "metadata": folder / "meta_Beauty.json.gz",
        "plain": write_files(tmp_path / "plain", plain),
        "five core": write_files(
            tmp_path / "five", {"reviews_Beauty_5.json": plain["reviews_Beauty.json"], **BEAUTY_2014}
        )
        / "reviews_Beauty_5.json",
        "tar": tmp_path / "beauty.tar",
        "tgz": tmp_path / "beauty.tgz",
        "zip": tmp_path / "beauty.zip",
    }[form]
    (tmp_path / "beauty.tar").write_bytes(tar_of(BEAUTY_2014))
    (tmp_path / "beauty.tgz").write_bytes(tar_of(plain, "gz"))
    (tmp_path / "beauty.zip").write_bytes(zip_of(BEAUTY_2014))
    expected = prepare(tmp_path / "expected", "beauty", source=folder)
    data = prepare(tmp_path / "ws", "beauty", source=source)
    assert data.log.equals(expected.log) and data.items.equals(expected.items)


def test_an_uncommon_category_s_own_file_names_its_metadata(tmp_path: Path) -> None:
    files = {"Wine.jsonl": json_lines(REVIEWS_2023), "meta_Wine.jsonl": json_lines(METADATA_2023)}
    source = write_files(tmp_path / "in", files) / "Wine.jsonl"
    assert prepare(tmp_path / "ws", "grocery-and-gourmet-food", source=source).stats["interactions"] == 3
    (tmp_path / "in" / "meta_Wine.jsonl").unlink()
    with pytest.raises(WrongUseError, match="no file with the metadata") as caught:
        prepare(tmp_path / "ws2", "grocery-and-gourmet-food", source=source)
    assert "meta_" in str(caught.value.hint)


def test_a_category_that_is_none_lists_near_names() -> None:
    for wrong, near in (("beuty", "beauty"), ("Video_Gmes", "video-games"), ("amazon_books", "books")):
        with pytest.raises(WrongUseError) as caught:
            find_preset(wrong)
        assert near in str(caught.value.hint)
    assert find_preset("Video_Games").name == find_preset("Video Games").name == "video-games"
    assert find_preset("AMAZON_FASHION").name == "fashion"
    with pytest.raises(WrongUseError, match="stamps"):
        find_preset("stamps")


def test_every_category_of_every_edition_is_a_preset() -> None:
    named = categories_by_name()
    for edition, names in CATEGORIES.items():
        assert len(set(names)) == len(names)
        for name in names:
            preset = find_preset(name)
            assert preset.categories[edition] == name and named[preset.name][edition] == name
    for name, categories in named.items():
        assert PRESETS[name].categories == categories and PRESETS[name].edition == ", ".join(sorted(categories))
    assert {len(names) for names in CATEGORIES.values()} == {24, 29, 34}


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ("$12.99", "$12.99"),
        ("$1,299.00", "$1,299.00"),
        ("$12.99 - $19.99", "$12.99 - $19.99"),
        ("from 14.99", "from 14.99"),
        (3.17, "3.17"),
        (12.0, "12"),
        ("—", None),
        ("None", None),
        (".a-box-inner{}", None),
        ("", None),
        (None, None),
        ({"amount": 5}, None),
    ],
)
def test_prices_are_prices_or_missing(tmp_path: Path, price: Any, text: str | None) -> None:
    files = {
        "All_Beauty.jsonl": json_lines(REVIEWS_2023[:1]),
        "meta_All_Beauty.jsonl": json_lines([METADATA_2023[0] | {"price": price}]),
    }
    data = prepare(tmp_path / "ws", "all-beauty", source=write_files(tmp_path / "in", files))
    assert data.items["price"].to_list() == [text]
    assert data.stats["unreadable_values"] == ({"price": 1} if price and text is None else {})


HOSTILE = {
    "parentheses": "(" * 100_000 + "1" + ")" * 100_000,
    "brackets": "[" * 100_000 + "]" * 100_000,
    "braces": "{'a':" * 100_000,
    "never closed": "[" * 500_000,
    "minus signs": "-" * 100_000 + "1",
    "sums": "1+" * 100_000 + "1",
    "power": "9**9**9",
    "repetition": "'x' * 10**9",
    "a call": "__import__('os').system('touch pwned')",
    "a comprehension": "[x for x in range(10**9)]",
    "a lambda": "(lambda: open('pwned', 'w'))()",
    "an f-string": "f'{open(chr(112), chr(119))}'",
    "an unhashable key": "{[1]: 2}",
    "a number of a million digits": "9" * 1_000_000,
    "a hexadecimal number of many digits": "0x" + "f" * 200_000,
    "half a character": "'\\ud800'",
    "a NUL": "'\\x00'",
    "a megabyte of items": "(" + "1," * 500_000 + ")",
    "a name": "quit",
    "nothing": "",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_literals_are_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = f"{{'asin': 'B000000BAD', 'title': {value}}}\n".encode()
    files = {
        "reviews_Beauty.json": json_lines([*REVIEWS_2014, REVIEWS_2014[0] | {"asin": "B000000BAD"}]),
        "meta_Beauty.json": hostile + python_lines(METADATA_2014) + hostile,
    }
    data = prepare(tmp_path / "ws", "beauty", source=write_files(tmp_path / "in", files))
    assert len(data.items) == 2 and data.stats["interactions"] == 3
    rejected = [(r["file"], r["line"], r["reason"].split(":")[0]) for r in data.rejects]
    assert rejected == [
        ("meta_Beauty.json", 1, "unreadable line"),
        ("meta_Beauty.json", 5, "unreadable line"),
        ("reviews_Beauty.json", 4, "unknown item"),
    ]
    assert data.accounts_for_every_row() and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "value", ["{'a': 1", "[1]", "'text'", "{1, 2}", "{**{'a': 1}}", "{'a': b}", "\x00", "{'a': 1}}"]
)
def test_what_is_no_dictionary_literal_is_refused(value: str) -> None:
    with pytest.raises(ValueError):
        parse_python_object(value)


def test_literals_read_as_python_reads_them(recwarn: pytest.WarningsRecorder) -> None:
    for text in ("{'a': u'b', 'c': [1, (2.5, None)], 'd': {'e': True}}", r"'\d'", "-3", "b'x'"):
        with_python = ast.literal_eval(text)
        recwarn.clear()
        assert parse_literal(text) == with_python
        assert not recwarn.list


def test_markup_becomes_text_and_nothing_else_changes() -> None:
    assert plain_text("a &amp; b<br/>c  <b class='x'>d</b>\n e") == "a & b c d e"
    assert plain_text("1 < 2 and 3 > 2") == "1 < 2 and 3 > 2"
    assert plain_text("<script>var a = '<b>';</script>Soap <STYLE type='x'>b{}</STYLE>bar") == "Soap bar"
    assert plain_text(["a", "", None, ["b", 5.0]]) == "a, b, 5"
    assert plain_text({"a": {"b": True, "c": None}}) == "a: b: yes"


@pytest.mark.parametrize(
    ("details", "text"),
    [
        (json.dumps({"Brand": "A", "Material": ["cotton", "silk"]}), "Brand: A, Material: cotton, silk"),
        ("not JSON", "not JSON"),
        ("[1, 2]", "[1, 2]"),
        (None, None),
        ({"Release date": "2020", "Publication date": "2019", "ASIN": "B0"}, None),
        ({"rating": "4.5", "Best Sellers Rank": {"a": 1}, "Average Customer Reviews": "5"}, None),
        ({"Customer Package Type": "Box"}, "Customer Package Type: Box"),
    ],
)
def test_details_leak_neither_popularity_nor_dates(tmp_path: Path, details: Any, text: str | None) -> None:
    files = {
        "All_Beauty.jsonl": json_lines(REVIEWS_2023[:1]),
        "meta_All_Beauty.jsonl": json_lines([METADATA_2023[0] | {"details": details}]),
    }
    data = prepare(tmp_path / "ws", "all-beauty", source=write_files(tmp_path / "in", files))
    assert data.items["details"].to_list() == [text]


def test_nulls_and_numbers_as_strings(tmp_path: Path) -> None:
    def review(**values: Any) -> Record:
        return REVIEWS_2018[0] | values

    reviews = [
        review(overall="4", unixReviewTime="1493596800"),
        review(overall=None),
        review(reviewerID=None),
        review(asin=""),
        review(unixReviewTime=None),
        review(unixReviewTime="soon"),
        review(asin="  B0000Y3NO6 "),
    ]
    metadata = [METADATA_2018[0] | {"brand": None, "feature": None, "description": None, "details": None}]
    files = {"AMAZON_FASHION.json": json_lines(reviews), "meta_AMAZON_FASHION.json": json_lines(metadata)}
    data = prepare(tmp_path / "ws", "fashion", source=write_files(tmp_path / "in", files))
    assert data.log["rating"].to_list() == [4, None, 5]
    assert [r["reason"] for r in data.rejects] == [
        *("no user id", "no item id", "no timestamp", "timestamp is not a number or date"),
    ]
    assert data.items["brand"].to_list() == [None] and data.accounts_for_every_row()
