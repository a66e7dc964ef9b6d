"""Prompts: what a template makes of items, and what a view leaves out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.config.prompt import PromptSettings
from llmemb_cli.errors import WrongUseError
from llmemb_cli.markup import without_markup
from llmemb_cli.prompts.template import item_parts, render, shorten
from llmemb_cli.prompts.views import random_drop

ITEMS = pl.DataFrame(
    {"item_id": ["a", "b"], "title": ["Alien", None], "genre": ["horror {sci-fi}", "drama"], "year": ["1979", ""]}
)


def test_parts_follow_the_order_and_leave_out_what_an_item_lacks() -> None:
    parts = item_parts(ITEMS, ["title", "genre", "year"], PromptSettings())
    assert parts == [["title is Alien", "genre is horror {sci-fi}", "year is 1979"], ["genre is drama"]]


def test_settings_choose_rename_and_rephrase() -> None:
    settings = PromptSettings(attributes=["year", "title"], rename={"year": "made in"}, pattern="{name}: {value}")
    assert item_parts(ITEMS, ["title"], settings)[0] == ["made in: 1979", "title: Alien"]


def test_unknown_attribute_names_the_near_match() -> None:
    with pytest.raises(WrongUseError) as caught:
        item_parts(ITEMS, ["title"], PromptSettings(attributes=["titel"]))
    assert "title" in (caught.value.hint or "")


@pytest.mark.parametrize("pattern", ["{name} {price}", "{0}", "{name"])
def test_a_wrong_pattern_is_wrong_use(pattern: str) -> None:
    with pytest.raises(WrongUseError):
        item_parts(ITEMS, ["title"], PromptSettings(pattern=pattern))


def test_render() -> None:
    assert render("A film:", ["x", "y"], "; ") == "A film:\nx; y"
    assert render("", ["x", "y"], "; ") == "x; y"


@given(st.text(), st.integers(1, 50))
def test_shortened_text_is_a_beginning_on_one_line(text: str, limit: int) -> None:
    flat = " ".join(text.split())
    short = shorten(text, limit)
    assert len(short) <= limit
    assert flat.startswith(short)
    assert bool(short) == bool(flat)


@given(st.integers(1, 20), st.floats(0, 0.999), st.integers(0, 2**32))
def test_a_view_keeps_distinct_attributes_and_never_none(count: int, ratio: float, seed: int) -> None:
    parts = [f"part {i}" for i in range(count)]
    view = random_drop(parts, ratio, np.random.default_rng(seed))
    assert len(view) == len(set(view)) == max(1, count - int(count * ratio))
    assert set(view) <= set(parts)
    assert view == random_drop(parts, ratio, np.random.default_rng(seed))


HTML = "<p>Wash with <b>care</b>.</p><ul><li>Soap &amp; water</li><li>No bl<i>ea</i>ch</li></ul>"


def test_html_of_an_attribute_is_text_in_the_prompt_unless_it_is_kept() -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "title": [HTML, "<br/> &nbsp;"], "year": ["1999", "2000"]})
    parts = item_parts(items, ["title", "year"], PromptSettings())
    assert parts == [["title is Wash with care. Soap & water No bleach", "year is 1999"], ["year is 2000"]]
    assert item_parts(items, ["title"], PromptSettings(markup="keep"))[0] == [f"title is {HTML}"]
    # The limit is one of the text, not of the markup.
    assert item_parts(items, ["title"], PromptSettings(max_chars=20))[0] == ["title is Wash with care. Soap"]


@pytest.mark.parametrize(
    "text",
    [
        "std::vector<int> in C++",
        "a <3 b",
        "x < y > z",
        "Q&A; R&D",
        "https://shop.example/?a=1&copy=2&sect=3",
        "<Ctrl>-<b",
        "1 << 4 >> 2",
        "AT&T &unknown; &#; &#x;",
        "<address-book>",
        "</>",
        "<unknown attr='1'>",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    assert without_markup(text) == text


@given(st.text(alphabet=st.characters(exclude_characters="<&"), max_size=60))
def test_text_without_markup_only_loses_blanks(text: str) -> None:
    assert without_markup(text) == " ".join(text.split())


@given(
    st.lists(st.sampled_from(["<p>", "</p>", "<br/>", "<a href='x'>", "<!-- x -->", "word", " ", "&lt;", "<td\n>"]))
)
def test_of_html_the_words_stay(pieces: list[str]) -> None:
    text = without_markup("".join(pieces))
    assert text.count("word") == pieces.count("word") and text.count("<") == pieces.count("&lt;")
    assert "href" not in text and ">" not in text and text == text.strip()
