"""Prompts: what a template makes of items, and what a view leaves out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.config.prompt import PromptSettings
from llmemb_cli.errors import WrongUseError
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
