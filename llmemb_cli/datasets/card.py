"""The data card: what came in, what was left out and why, what there is now."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.config.data import DataSettings
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.columns import LEAKING
from llmemb_cli.datasets.popularity import tail_items
from llmemb_cli.datasets.presets import find_preset
from llmemb_cli.datasets.raw import RawData
from llmemb_cli.workspace.store import sha256_file

BINS = ((0, 0, "0"), (1, 4, "1-4"), (5, 9, "5-9"), (10, 19, "10-19"), (20, 39, "20-39"), (40, np.inf, "40+"))


def describe_data(
    log: pl.DataFrame,
    items: pl.DataFrame,
    raw: RawData,
    settings: Settings,
    left_out: Counter[str],
) -> dict[str, Any]:
    """The document of `llmemb data --json`."""
    users, n_items, rows = log["user_id"].n_unique(), len(items), len(log)
    index = pl.DataFrame({"item_id": items["item_id"], "item": np.arange(1, n_items + 1)})
    indexed = log.join(index, on="item_id", how="left", maintain_order="left")
    train = indexed.filter(pl.col("split") == "train")["item"].to_numpy()
    counts = np.bincount(train, minlength=n_items + 1)
    targets = indexed.filter(pl.col("split") == "test")["item"].to_numpy()
    tail = tail_items(counts, settings.data.tail_share)
    preset = find_preset(settings.data.dataset)
    share = {name: round(1 - items[name].null_count() / max(n_items, 1), 4) for name in items.columns[1:]}
    return {
        "dataset": settings.data.dataset,
        "users": users,
        "items": n_items,
        "interactions": rows,
        "density": rows / (users * n_items) if users and n_items else 0.0,
        "mean_length": rows / users if users else 0.0,
        "first": _day(log["timestamp"].min()),
        "last": _day(log["timestamp"].max()),
        "test_users": len(targets),
        "tail": {
            "share_of_items": settings.data.tail_share,
            "items": int(tail.sum()),
            "largest_count": int(counts[tail].max(initial=0)),
            "share_of_test": float(tail[targets].mean()) if len(targets) else 0.0,
        },
        "popularity": [
            {
                "bin": name,
                "items": int(((counts[1:] >= low) & (counts[1:] <= (counts.max() if high is None else high))).sum()),
            }
            for low, high, name in BINS
        ],
        "source": {
            "edition": raw.edition,
            "licence": preset.licence,
            "files": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in raw.files
            ],
        },
        "rows_read": dict(raw.tally.rows_read),
        "rejected": raw.tally.total(),
        "rejected_by_reason": raw.tally.by_reason(),
        "rejected_by_file": {
            name: sum(count for (file, _), count in raw.tally.counts.items() if file == name)
            for name in raw.tally.rows_read
        },
        "left_out": dict(left_out),
        "items_without_interactions": 0 if raw.items is None else len(raw.items) - n_items,
        "unreadable_values": dict(raw.unreadable),
        "published": [asdict(published) for published in preset.published],
        "split": settings.data.split,
        "filter": settings.data.filter,
        "instruction": raw.instruction,
        "attributes": [name for name in raw.attributes if name in items.columns],
        "attribute_share": share,
    }


def _day(seconds: Any) -> str:
    """A date, or the bare number where times are positions in a sequence."""
    if not isinstance(seconds, int) or not 86_400 * 365 <= seconds < 253_402_300_800:
        return str(seconds)
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def card_text(summary: dict[str, Any], settings: Settings) -> str:
    """The card as Markdown."""
    files = "\n".join(
        f"- `{f['name']}`, {f['bytes']:,} bytes, sha256 `{f['sha256']}`" for f in summary["source"]["files"]
    )
    read = ", ".join(f"{rows:,} from `{name}`" for name, rows in summary["rows_read"].items())
    counted = [(count, f"rejected: {reason}") for reason, count in summary["rejected_by_reason"].items()]
    counted += [(count, f"left out: {rule}") for rule, count in summary["left_out"].items()]
    if summary["items_without_interactions"]:
        counted.append((summary["items_without_interactions"], "items without an interaction that is left"))
    counted += [
        (count, f"values of {name} that are none, taken as missing")
        for name, count in summary["unreadable_values"].items()
    ]
    losses = "".join(f"\n- {count:,} {what}" for count, what in counted)
    attributes = "\n".join(f"| {name} | {share:.1%} |" for name, share in summary["attribute_share"].items())
    tail = summary["tail"]
    tail_line = (
        f"{tail['items']:,} items with at most {tail['largest_count']} training interactions, "
        f"{tail['share_of_test']:.1%} of test targets"
    )
    return f"""# Data card: {summary["dataset"]}

| | |
|---|---|
| users | {summary["users"]:,} |
| items | {summary["items"]:,} |
| interactions | {summary["interactions"]:,} |
| density | {summary["density"]:.4%} |
| mean length | {summary["mean_length"]:.2f} |
| dates | {summary["first"]} to {summary["last"]} |
| test users | {summary["test_users"]:,} |
| tail | {tail_line} |
{_published_text(summary)}
## Source

Edition: {summary["source"]["edition"]}. Licence: {summary["source"]["licence"]}.

{files}

## Rules

Rows read: {read}. {_rules_text(settings.data)}
{losses}

## Attributes

| attribute | share of items |
|---|---|
{attributes}

In prompts: {", ".join(summary["attributes"]) or "none"}.{_leak_text(summary["attributes"])}
"""


def _published_text(summary: dict[str, Any]) -> str:
    if not summary["published"]:
        return ""
    rows = "\n".join(
        f"| {entry['source']} | {entry['users']:,} | {entry['items']:,} | {entry['interactions']:,} |"
        for entry in summary["published"]
    )
    return f"""
## Beside published figures

| | users | items | interactions |
|---|---|---|---|
| here | {summary["users"]:,} | {summary["items"]:,} | {summary["interactions"]:,} |
{rows}
"""


def _rules_text(data: DataSettings) -> str:
    """Every rule that was in force, in words."""
    rules = []
    if data.min_rating is not None:
        rules.append(f"ratings from {data.min_rating:g}")
    if data.start or data.end:
        rules.append(f"dates from {data.start or 'the first'} to before {data.end or 'the end'}")
    rules.append({"keep": "repeats kept", "first": "first of repeats", "last": "last of repeats"}[data.repeats])
    if data.sample is not None or data.max_users is not None:
        size = f"{data.sample:.1%}" if data.sample is not None else f"at most {data.max_users:,}"
        rules.append(f"a random sample of {size} of the users")
    minimum = f"users with {data.min_user} and items with {data.min_item} interactions"
    rules.append("no filter by count" if data.filter == "none" else f"filter {data.filter}: {minimum}")
    cut = f" (validation from {data.valid_from}, test from {data.test_from})" if data.split == "time" else ""
    return f"Rules: {'; '.join(rules)}; split {data.split}{cut}."


def _leak_text(attributes: list[str]) -> str:
    leaking = [name for name in attributes if name.lower() in LEAKING]
    if not leaking:
        return ""
    return f" Of these, {', '.join(leaking)} tell how popular an item is or became, as in the authors' own prompts."
