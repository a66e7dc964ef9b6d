"""The data stage: raw files to `items.parquet`, `interactions.parquet` and a data card."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.card import card_text, describe_data
from llmemb_cli.datasets.presets import find_preset
from llmemb_cli.datasets.raw import RawData
from llmemb_cli.datasets.readers.tabular import LINE, Reject
from llmemb_cli.datasets.rules import apply_rules, check_interactions, check_items, split_column
from llmemb_cli.errors import BadDataError
from llmemb_cli.pipeline import data_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, run_stage
from llmemb_cli.workspace.store import write_json, write_parquet, write_text

SMALLEST = 100  # fewer users or items are more often a wrong file or column than a data set
REJECTS_KEPT = 100  # of each reason


def prepare(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Make `data/` from the sources named in `[data]`.

    Raises:
        WrongUseError: a file or column that is not there.
        BadDataError: the files cannot be used, or almost nothing is left of them.
        MissingError: a preset's files cannot be fetched.
    """

    def build(work: Path) -> dict[str, Any]:
        preset = find_preset(settings.data.dataset)
        raw = preset.read(settings.data, workspace.root, report)
        return _write(work, raw, settings, report)

    return run_stage(data_stage(workspace, settings), build, force=force, report=report)


def _write(work: Path, raw: RawData, settings: Settings, report: Reporter) -> dict[str, Any]:
    rejects = list(raw.rejects)
    known = None
    if raw.items is not None:
        raw.items, bad = check_items(raw.items, raw.items_name)
        rejects += bad
        known = raw.items["item_id"]
    log, bad = check_interactions(raw.interactions, known, raw.log_name)
    rejects += bad
    log, left_out = apply_rules(log, settings.data, settings.seed)
    log = split_column(log, settings.data)
    items = _items_of(log, raw)
    _write_rejects(work / "rejected.jsonl", rejects)
    summary = describe_data(log, items, raw, settings, rejects, left_out)
    _refuse_tiny(summary, settings, rejects)
    write_parquet(work / "items.parquet", items)
    write_parquet(work / "interactions.parquet", log)
    write_json(work / "stats.json", summary)
    write_text(work / "card.md", card_text(summary, settings))
    if rejects:
        report.warn(f"{len(rejects)} lines were not used: see data/rejected.jsonl")
    return summary


def _items_of(log: pl.DataFrame, raw: RawData) -> pl.DataFrame:
    """The items that are left, in catalogue order (or order of first interaction), attributes in prompt order."""
    left = log.select(pl.col("item_id").unique(maintain_order=True))
    if raw.items is None:
        return left.with_columns(pl.lit(None, pl.String).alias("title"))
    items = raw.items.join(left, on="item_id", how="semi", maintain_order="left").drop(LINE)
    if "title" not in items.columns:
        items = items.with_columns(pl.lit(None, pl.String).alias("title"))
    return items.select("item_id", "title", pl.exclude("item_id", "title"))


def _write_rejects(path: Path, rejects: list[Reject]) -> None:
    kept: Counter[str] = Counter()
    lines = []
    for reject in rejects:
        kept[reject.reason] += 1
        if kept[reject.reason] <= REJECTS_KEPT:
            lines.append(json.dumps(reject.__dict__, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))


def _refuse_tiny(summary: dict[str, Any], settings: Settings, rejects: list[Reject]) -> None:
    if settings.data.allow_small:
        return
    if summary["users"] < SMALLEST or summary["items"] < SMALLEST:
        reasons = Counter(reject.reason for reject in rejects).most_common(3)
        lost = "; ".join(f"{count} lines: {reason}" for reason, count in reasons)
        rules = "; ".join(f"{count} rows: {rule}" for rule, count in summary["left_out"].items())
        raise BadDataError(
            f"only {summary['users']} users and {summary['items']} items are left"
            + "".join(f" ({part})" for part in (lost, rules) if part),
            hint="check the columns and filters (--set data.min_item=...), or keep it so with --force",
        )
