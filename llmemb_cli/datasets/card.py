"""The data card: what came in, what was left out and why, what there is now."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.config.data import PREPARATIONS, DataSettings
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.columns import leaks
from llmemb_cli.datasets.hashes import FileHashes
from llmemb_cli.datasets.popularity import bin_places, count_bins, tail_items
from llmemb_cli.datasets.presets import DatasetPreset, Published, find_preset
from llmemb_cli.datasets.raw import RawData
from llmemb_cli.progress import Reporter

# Settings that say which file and column is what, not what is done with it.
_SOURCE = {"dataset", "edition", "source", "interactions", "items", "encoding", "attributes", "allow_small"}


def describe_data(
    log: pl.DataFrame,
    items: pl.DataFrame,
    raw: RawData,
    settings: Settings,
    left_out: Counter[str],
    report: Reporter,
) -> dict[str, Any]:
    """The document of `llmemb data --json`; `log` may have its ids as text or as categories."""
    users, n_items, rows = log["user_id"].n_unique(), len(items), len(log)
    ids = items["item_id"].cast(log.schema["item_id"])
    index = pl.DataFrame({"item_id": ids, "item": np.arange(1, n_items + 1)})
    indexed = log.join(index, on="item_id", how="left", maintain_order="left")
    train = indexed.filter(pl.col("split") == "train")["item"].to_numpy()
    counts = np.bincount(train, minlength=n_items + 1)
    targets = indexed.filter(pl.col("split") == "test")["item"].to_numpy()
    tail = tail_items(counts, settings.data.tail_share)
    preset = find_preset(settings.data.dataset)
    return {
        "dataset": settings.data.dataset,
        "title": preset.title,
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
        "popularity": histogram(counts, targets),
        "share_of_top_fifth": share_of_top_fifth(counts[1:]),
        "published": [_beside(published, counts, targets) for published in preset.published],
        "source": _source(raw, preset, settings.data, report),
        "rows_read": dict(raw.tally.rows_read),
        "rejected": raw.tally.total(),
        "rejected_by_reason": raw.tally.by_reason(),
        "rejected_by_file": {
            name: sum(count for (file, _), count in raw.tally.counts.items() if file == name)
            for name in raw.tally.rows_read
        },
        "rejects": [
            {"file": file, "reason": reason, "count": count}
            for (file, reason), count in raw.tally.counts.most_common()
        ],
        "left_out": dict(left_out),
        "items_without_interactions": 0 if raw.items is None else len(raw.items) - n_items,
        "unreadable_values": dict(raw.unreadable),
        "preset": _preparation(settings.data),
        "rules": {
            key: value
            for key, value in settings.data.model_dump(mode="json").items()
            if key not in _SOURCE and not key.endswith("_column")
        }
        | {"seed": settings.seed},
        "rules_in_words": _rules(settings),
        "split": settings.data.split,
        "split_rows": {name: int((log["split"] == name).sum()) for name in ("train", "valid", "test", "later")},
        "filter": settings.data.filter,
        **_attributes(raw, items, settings.data),
    }


def histogram(counts: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    """Items, their training interactions and the users whose test item they are, by bin of popularity.

    Args:
        counts: (n_items + 1,) int, training interactions; index 0 is the padding.
        targets: (test users,) int, their test items.
    """
    bins = count_bins(int(counts[1:].max(initial=0)))
    places = bin_places(counts[1:], bins)
    items = np.bincount(places, minlength=len(bins))
    events = np.bincount(places, weights=counts[1:], minlength=len(bins))
    users = np.bincount(bin_places(counts[targets], bins), minlength=len(bins))
    return [
        one._asdict() | {"items": int(n), "interactions": int(m), "test_users": int(u)}
        for one, n, m, u in zip(bins, items, events, users, strict=True)
    ]


def share_of_top_fifth(counts: np.ndarray) -> float:
    """The share of all training interactions that the most popular fifth of the items has."""
    ordered = np.sort(counts)[::-1]
    return float(ordered[: max(1, round(0.2 * len(ordered)))].sum() / max(int(ordered.sum()), 1))


def _beside(published: Published, counts: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Published figures, and how much of this data is tail by the published threshold."""
    document = asdict(published) | {"mean_length": published.interactions / published.users}
    if published.tail_below is None:
        return document
    tail = tail_items(counts, 0.0, published.tail_below)
    return document | {
        "items_below_here": int(tail.sum()),
        "share_of_test_below_here": float(tail[targets].mean()) if len(targets) else 0.0,
    }


def _source(raw: RawData, preset: DatasetPreset, data: DataSettings, report: Reporter) -> dict[str, Any]:
    columns = {name: getattr(data, f"{name}_column") for name in ("user", "item", "time", "rating", "title")}
    return {
        "edition": raw.edition,
        "licence": preset.licence,
        "columns": {name: column for name, column in columns.items() if column},
        "log": raw.log_name,
        "catalogue": raw.items_name,
        "files": (raw.hashes or FileHashes(raw.files)).result(report),
    }


def _attributes(raw: RawData, items: pl.DataFrame, data: DataSettings) -> dict[str, Any]:
    there = items.columns[1:]
    return {
        "instruction": raw.instruction,
        "attributes": [name for name in raw.attributes if name in there],
        "attribute_share": {name: round(1 - items[name].null_count() / max(len(items), 1), 4) for name in there},
        "leaking": [name for name in there if leaks(name)],
    }


def _preparation(data: DataSettings) -> str | None:
    """The name of the whole preparation that the settings are, if they are one."""
    defaults = DataSettings()
    rules = [key for key in DataSettings.model_fields if key not in _SOURCE and not key.endswith("_column")]
    for name, values in PREPARATIONS.items():
        if all(getattr(data, key) == values.get(key, getattr(defaults, key)) for key in rules):
            return name
    return None


def _day(seconds: Any) -> str:
    """A date, or the bare number where times are positions in a sequence."""
    if not isinstance(seconds, int) or not 86_400 * 365 <= seconds < 253_402_300_800:
        return str(seconds)
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _rules(settings: Settings) -> list[str]:
    """Every rule that was in force, in words, in the order in which they are applied."""
    data, rules = settings.data, []
    if data.min_rating is not None:
        rules.append(f"ratings of {data.min_rating:g} and more")
    if data.start or data.end:
        rules.append(
            " and ".join(filter(None, (data.start and f"from {data.start}", data.end and f"before {data.end}")))
        )
    repeats = {"keep": "all are kept", "first": "the first is kept", "last": "the last is kept"}
    rules.append(f"of a user's repeated interactions with an item {repeats[data.repeats]}")
    if data.sample is not None or data.max_users is not None:
        size = f"{data.sample:.3g} of the" if data.sample is not None else ""
        most = f"at most {data.max_users:,}" if data.max_users is not None else ""
        rules.append(f"a random sample of {', '.join(filter(None, (size, most)))} users, seed {settings.seed}")
    enough = f"users with {data.min_user} and items with {data.min_item} interactions or more"
    rules.append(
        {
            "none": "no filter by number of interactions",
            "single-pass": f"{enough}, counted once; then users with fewer than {data.min_user} left go",
            "k-core": f"{enough}, counted again until nothing changes",
        }[data.filter]
    )
    if data.split == "time":
        rules.append(
            f"split by time: validation from {data.valid_from}, test from {data.test_from}; a user's first "
            "interaction of either period is its target, later ones are not used"
        )
    else:
        rules.append("split leave-one-out: a user's last interaction tests, the one before validates")
    return rules
