"""The data stage: raw files to `items.parquet`, `interactions.parquet` and a data card."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from llmemb_cli.config.data import DataSettings, check_rules
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.card import describe_data
from llmemb_cli.datasets.card_text import card_text
from llmemb_cli.datasets.columns import leaks
from llmemb_cli.datasets.hashes import FileHashes
from llmemb_cli.datasets.presets import find_preset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.chunks import LINE
from llmemb_cli.datasets.rules import (
    NO_TIME,
    WRITTEN_DAYS,
    apply_rules,
    check_interactions,
    check_items,
    item_lookup,
    keep_rows,
    look_like_days,
    split_column,
    written_as_days,
)
from llmemb_cli.errors import BadDataError, WrongUseError, near_match
from llmemb_cli.pipeline import data_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.store import write_json, write_parquet, write_text

SMALLEST = 100  # fewer users or items are more often a wrong file or column than a data set


def prepare(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Make `data/` from the sources named in `[data]`.

    Raises:
        WrongUseError: a file or column that is not there.
        BadDataError: the files cannot be used, or almost nothing is left of them.
        MissingError: a preset's files cannot be fetched.
    """
    check_rules(settings.data)

    def build(work: Path) -> dict[str, Any]:
        preset = find_preset(settings.data.dataset)
        raw = preset.read(settings.data, workspace.root, report)
        return _write(work, raw, settings, report)

    return run_stage(data_stage(workspace, settings), build, force=force, report=report)


def _write(work: Path, raw: RawData, settings: Settings, report: Reporter) -> dict[str, Any]:
    tally, left_out = raw.tally, Counter[str]()
    raw.hashes = raw.hashes or FileHashes(raw.files)
    if raw.items is not None:
        raw.items = check_items(raw.items, raw.items_name, tally)
    among_known = item_lookup(None if raw.items is None else raw.items["item_id"])
    parts = []
    days: bool | None = False if settings.data.time_format else None  # decided once for the file, by its first times
    for batch in raw.log:
        tally.rows_read[raw.log_name] += batch.rows_read
        tally.add(batch.rejects)
        days = written_as_days(batch.frame) if days is None else days
        form = WRITTEN_DAYS if days else settings.data.time_format
        usable = check_interactions(batch.frame, among_known, raw.log_name, tally, time_format=form)
        parts.append(keep_rows(usable, settings.data, left_out))
    if not tally.rows_read[raw.log_name]:
        raise BadDataError("the file has no rows", where=raw.log_name)
    log = apply_rules(pl.concat(parts, how="diagonal"), settings.data, settings.seed, left_out)
    parts.clear()
    if look_like_days(log):
        report.warn("most times look like days (20140513) but not all are: they were read as seconds, so as 1970")
    log = split_column(log, settings.data)
    items = _items_of(log, raw, settings.data)
    _write_rejects(work / "rejected.jsonl", tally)
    summary = describe_data(log, items, raw, settings, left_out, report)
    _refuse_tiny(summary, settings, raw)
    _refuse_untested(summary, settings)
    if settings.data.time_column and not _warn_of_copies(log, report):
        _warn_of_ties(log, report)
    write_parquet(work / "items.parquet", items)
    write_parquet(work / "interactions.parquet", log.with_columns(pl.col("user_id", "item_id").cast(pl.String)))
    write_json(work / "stats.json", summary)
    write_text(work / "card.md", card_text(summary))
    if tally.total():
        report.warn(_unused_lines(raw) + _encoding_hint(tally, settings))
    return summary


def _refuse_untested(summary: dict[str, Any], settings: Settings) -> None:
    """Nothing could be measured: more often the wrong days than what was meant."""
    if summary["test_users"] or settings.data.allow_small:
        return
    if settings.data.split == "time":
        raise BadDataError(
            "no user is left with an item to test on",
            hint=f"interactions are from {summary['first']} to {summary['last']}: other days for --valid-from and "
            "--test-from, or --force",
        )
    raise BadDataError(
        "no user is left with an item to test on",
        hint="a user needs three interactions; look at the rules, or --force",
    )


def _unused_lines(raw: RawData) -> str:
    """How many lines were of no use, which share of the log, and why most of them."""
    tally = raw.tally
    reason, count = next(iter(tally.by_reason().items()))
    lost = sum(number for (file, _), number in tally.counts.items() if file == raw.log_name)
    share = lost / tally.rows_read[raw.log_name]
    said = f"{tally.total():,} lines were not used" + (f", {share:.0%} of the interactions" if share >= 0.01 else "")
    most = f" (most: {reason}, {count:,})" if tally.total() > 1 else f" ({reason})"
    return f"{said}{most}: see data/rejected.jsonl"


def _warn_of_copies(log: pl.DataFrame, report: Reporter) -> bool:
    """A log that was written twice says twice what comes next; whether that was said."""
    copies = len(log) - log.select("user_id", "item_id", "timestamp").n_unique()
    if copies <= len(log) / 100:
        return False
    report.warn(
        f"{copies:,} of {len(log):,} interactions are there already, of the same user with the same item at the same "
        "time: --repeats first keeps one of each"
    )
    return True


def _warn_of_ties(log: pl.DataFrame, report: Reporter) -> None:
    """A column that is no time (a quantity, a price) orders nothing, and no line of it is wrong by itself."""
    users, times = log["user_id"].to_physical(), log["timestamp"]
    same_user = users == users.shift(1)
    pairs, ties = int(same_user.sum()), int((same_user & (times == times.shift(1))).sum())
    if pairs and ties > pairs / 2:
        report.warn(
            f"{ties / pairs:.0%} of users' interactions have the time of the one before, and the order of the lines "
            "decides: is it the right column (--time-column)?"
        )


def _encoding_hint(tally: Tally, settings: Settings) -> str:
    not_utf8 = sum(count for reason, count in tally.by_reason().items() if "not UTF-8" in reason)
    if not not_utf8 or "encoding" not in find_preset(settings.data.dataset).uses:
        return ""
    return f"; {not_utf8:,} of them are not UTF-8: say how the text is written with --encoding latin-1 or cp1252"


def _prompt_attributes(raw: RawData, settings: DataSettings) -> list[str]:
    """The attributes that go into prompts, in order.

    Raises:
        WrongUseError: one was asked for that the items lack.
    """
    assert raw.items is not None
    there = [name for name in raw.items.columns if name not in ("item_id", LINE)]
    if not settings.attributes:
        usable = [name for name in raw.attributes if settings.leaking or not leaks(name)]
        return [name for name in usable if raw.items[name].null_count() < len(raw.items)]
    names = raw.renamed | {settings.title_column: "title"}
    wanted = [names.get(name, name) for name in settings.attributes]
    for name in wanted:
        if name not in there:
            close = near_match(name, there)
            raise WrongUseError(
                f"items have no attribute {name}; there are: {', '.join(there)}",
                where=raw.items_name,
                hint=f"did you mean {close}?" if close else "--attributes",
            )
    return wanted


def _items_of(log: pl.DataFrame, raw: RawData, settings: DataSettings) -> pl.DataFrame:
    """The items that are left, in catalogue order (or order of first interaction), attributes in prompt order."""
    left = log.select(pl.col("item_id").unique(maintain_order=True).cast(pl.String))
    if raw.items is None:
        return left.with_columns(pl.lit(None, pl.String).alias("title"))
    raw.attributes = _prompt_attributes(raw, settings)
    items = raw.items.join(left, on="item_id", how="semi", maintain_order="left").drop(LINE)
    if "title" not in items.columns:
        items = items.with_columns(pl.lit(None, pl.String).alias("title"))
    return items.select("item_id", "title", pl.exclude("item_id", "title"))


def _write_rejects(path: Path, tally: Tally) -> None:
    write_text(path, "".join(json.dumps(reject.__dict__, ensure_ascii=False) + "\n" for reject in tally.kept))


def _refuse_tiny(summary: dict[str, Any], settings: Settings, raw: RawData) -> None:
    least = 1 if settings.data.allow_small else SMALLEST
    if summary["users"] >= least and summary["items"] >= least:
        return
    losses = [(count, f"rejected: {reason}") for reason, count in summary["rejected_by_reason"].items()]
    losses += [(count, f"left out: {rule}") for rule, count in summary["left_out"].items()]
    losses.sort(key=lambda loss: -loss[0])
    reasons = "; ".join(f"{count:,} {what}" for count, what in losses[:4])
    read = ", ".join(f"{name} ({rows:,} rows)" for name, rows in summary["rows_read"].items())
    worst = next(iter(summary["rejected_by_reason"]), "")
    times = _time_hint(settings) if worst == NO_TIME else ""
    expected = next((f"; others report {entry['users']:,} users" for entry in summary["published"]), "")
    raise BadDataError(
        f"only {summary['users']} users and {summary['items']} items are left"
        + (f" ({reasons})" if reasons else "")
        + f"; fewer than {SMALLEST} are more often a wrong file or column{expected}{_example(raw, worst)}",
        where=read,
        hint=(_known_ids(raw) if worst == "unknown item" else "")
        + times
        + "check files and columns, lower --min-user and --min-item"
        + (", or keep it so with --force" if summary["users"] and summary["items"] else ""),
    )


def _time_hint(settings: Settings) -> str:
    if settings.data.time_format:
        return f"times are read as --time-format {settings.data.time_format!r} says; "
    known = "times are seconds (or ms, us, ns) or dates such as 2014-05-13 16:53:20; "
    if "time_format" not in find_preset(settings.data.dataset).uses:
        return known
    return known + 'say how others are written: --time-format "%m/%d/%Y", or excel; '


def _example(raw: RawData, reason: str) -> str:
    """The first line that was of no use for this reason, which shows more than a description."""
    shown = next((reject for reject in raw.tally.kept if reject.reason == reason), None)
    return "" if shown is None else f"; {shown.file}, line {shown.line}: {shown.text[:80]}"


def _known_ids(raw: RawData) -> str:
    """What the ids of the catalogue look like, for a log in which none of them is."""
    known = [] if raw.items is None else raw.items["item_id"].drop_nulls().head(2).to_list()
    if not known:
        return ""
    return f"the items' file has ids such as {', '.join(known)}: are those of the log written otherwise? "
