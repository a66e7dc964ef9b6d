"""`[prompt]`: how an item becomes text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmemb_cli.config.fields import Section, setting


class PromptSettings(Section):
    instruction: str = setting("", "first line of every prompt; empty: the data set's own", source="LLMEmb Eq. 1")
    attributes: list[str] = setting([], "attributes in this order; empty: all, in the order of items.parquet")
    rename: dict[str, str] = setting({}, "attribute names as they shall read in the prompt")
    markup: Literal["text", "keep"] = setting(
        "text", "HTML in attributes: text without tags, entities resolved; or keep it as it is"
    )
    pattern: str = setting("{name} is {value}", "how one attribute reads", source="LLMEmb section 3.2")
    separator: str = setting("; ", "text between attributes")
    max_chars: int = setting(400, "longest attribute value; longer ones are cut at a word", unit="characters", ge=1)
    limits: dict[str, Annotated[int, Field(ge=1)]] = setting(
        {}, "longest value of single attributes, before max_chars; e.g. { description = 200 }", unit="characters"
    )


# What settings were that a manifest of prompts does not have: off, as before there were these settings.
PROMPT_OFF: dict[str, object] = {"limits": {}, "markup": "keep"}
