"""An item as text: instruction, then "name is value" for every attribute it has (LLMEmb Eq. 1)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from llmemb_cli.errors import WrongUseError, near_match
from llmemb_cli.markup import without_markup

if TYPE_CHECKING:
    import polars as pl

    from llmemb_cli.config.prompt import PromptSettings


def item_parts(items: pl.DataFrame, attributes: list[str], settings: PromptSettings) -> list[list[str]]:
    """The attribute texts of every item, in prompt order; missing attributes are left out.

    Raises:
        WrongUseError: an attribute or pattern that is not there.
    """
    chosen = settings.attributes or attributes
    for key, given in (("attributes", chosen), ("rename", settings.rename), ("limits", settings.limits)):
        for name in given:
            if name not in items.columns:
                close = near_match(name, items.columns)
                there = ", ".join(column for column in items.columns if column != "item_id")
                raise WrongUseError(
                    f"prompt.{key}: items have no {name}",
                    hint=f"did you mean {close}?" if close else f"they have: {there}",
                )
    names = [settings.rename.get(name, name) for name in chosen]
    limits = [settings.limits.get(name, settings.max_chars) for name in chosen]
    try:
        settings.pattern.format(name="", value="")
    except (KeyError, IndexError, ValueError):
        raise WrongUseError("prompt.pattern must use {name} and {value} only", where=settings.pattern) from None
    # Without a column polars knows of no row.
    rows = items.select(chosen).iter_rows() if chosen else itertools.repeat((), len(items))
    read = without_markup if settings.markup == "text" else str.strip
    return [
        [
            settings.pattern.format(name=name, value=shorten(text, limit))
            for name, limit, value in zip(names, limits, row, strict=True)
            if value and (text := read(value))
        ]
        for row in rows
    ]


def shorten(value: str, limit: int) -> str:
    """`value` on one line, cut at the last whole word within `limit` characters."""
    value = " ".join(value.split())
    if len(value) <= limit:
        return value
    head, blank, _ = value[: limit + 1].rpartition(" ")
    return head if blank else value[:limit]


def render(instruction: str, parts: list[str], separator: str) -> str:
    """The prompt: the instruction on its own line, then the attributes."""
    return f"{instruction}\n{separator.join(parts)}" if instruction else separator.join(parts)
