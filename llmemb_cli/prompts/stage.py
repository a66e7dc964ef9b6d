"""The prompt stage: `prompts/prompts.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from llmemb_cli.config.prompt import PromptSettings
from llmemb_cli.config.settings import Settings
from llmemb_cli.errors import BadDataError
from llmemb_cli.pipeline import prompt_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.template import item_parts, render
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.stage import require_stage
from llmemb_cli.workspace.store import read_parquet, write_parquet

# Items that stand as Python objects at one time: these take ten times the room of a column.
BLOCK = 50_000


def make_prompts(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Make the text of every item from its attributes and `[prompt]`.

    Raises:
        WrongUseError: there is no data, or `[prompt]` names an attribute that items lack.
        BadDataError: an item has none of the attributes.
    """
    require_stage(workspace.data, made_by="llmemb init")

    def build(work: Path) -> dict[str, Any]:
        frame, summary = preview_prompts(workspace, settings)
        write_parquet(work / "prompts.parquet", frame)
        if summary["duplicates"]:
            report.note(
                f"{summary['duplicates']} items share their prompt with another; they are no negatives of each other"
            )
        return summary

    return run_stage(prompt_stage(workspace, settings), build, force=force, report=report)


def preview_prompts(workspace: Workspace, settings: Settings) -> tuple[pl.DataFrame, dict[str, Any]]:
    """What `make_prompts` would write under these settings, as `read_prompts` gives it; nothing is written.

    Raises:
        WrongUseError, BadDataError: as `make_prompts`.
    """
    card = require_stage(workspace.data, made_by="llmemb init")["summary"]
    path = workspace.data / "items.parquet"
    chosen = settings.prompt
    instruction = chosen.instruction or card["instruction"]
    frame = build_prompts(read_parquet(path), card["attributes"], instruction, chosen, str(path))
    return frame, {
        "items": len(frame),
        "instruction": instruction,
        "separator": chosen.separator,
        "duplicates": len(frame) - frame["prompt"].n_unique(),
        "mean_chars": float(frame["prompt"].str.len_chars().mean() or 0.0),  # type: ignore[arg-type]
        "mean_attributes": float(frame["parts"].list.len().mean() or 0.0),  # type: ignore[arg-type]
    }


def build_prompts(
    items: pl.DataFrame, attributes: list[str], instruction: str, chosen: PromptSettings, where: str
) -> pl.DataFrame:
    """The prompts of `items` (`item_id` and attribute columns) as a table of `item_id`, `parts`, `prompt`.

    Raises:
        WrongUseError: `chosen` names an attribute that items lack.
        BadDataError: an item has none of the attributes.
    """
    made = [
        _build_some(items[at : at + BLOCK], attributes, instruction, chosen)
        for at in range(0, max(len(items), 1), BLOCK)
    ]
    frame = pl.concat(made, rechunk=False)
    empty = frame.filter(pl.col("parts").list.len() == 0)["item_id"]
    if len(empty):
        raise BadDataError(
            f"{len(empty)} of {len(items)} items have no text, for example {empty[0]}",
            where=where,
            hint="give items attributes (`llmemb init custom --items FILE`) or choose others in [prompt]",
        )
    return frame


def _build_some(items: pl.DataFrame, attributes: list[str], instruction: str, chosen: PromptSettings) -> pl.DataFrame:
    parts = item_parts(items, attributes, chosen)
    prompts = [render(instruction, texts, chosen.separator) for texts in parts]
    return pl.DataFrame(
        {"item_id": items["item_id"], "parts": parts, "prompt": prompts},
        schema={"item_id": pl.String, "parts": pl.List(pl.String), "prompt": pl.String},
    )


def read_prompts(workspace: Workspace, columns: list[str] | None = None) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The prompts (`item_id`, `parts`, `prompt`, or some of these) and the stage's summary (instruction, counts)."""
    summary = require_stage(workspace.prompts, made_by="llmemb prompt")["summary"]
    return read_parquet(workspace.prompts / "prompts.parquet", columns=columns), summary
