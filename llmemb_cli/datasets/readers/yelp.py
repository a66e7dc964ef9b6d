"""The Yelp academic data set, every edition since 2013."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.hashes import FileHashes
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.ahead import read_ahead
from llmemb_cli.datasets.readers.catalogue import features, items_table, plain_text
from llmemb_cli.datasets.readers.jsonl import Record, as_text, json_records, parse_object, scan_jsonl
from llmemb_cli.datasets.readers.sources import find_files
from llmemb_cli.errors import MissingError
from llmemb_cli.progress import Reporter

# `yelp_academic_dataset_review.json`, `yelp_training_set_review.json` (RecSys 2013), `review.json`.
ROLES = {
    "reviews": r"(?!.*test_set)(.*[_-])?reviews?\.jsonl?(\.gz)?",
    "businesses": r"(?!.*test_set)(.*[_-])?business(es)?\.jsonl?(\.gz)?",
}
EXPECTED = "yelp_dataset.tar, .tgz or .zip as Yelp ships it, or the folder with *_review.json and *_business.json"
COLUMNS = [
    *("title", "categories", "city", "state", "neighborhoods", "address", "features", "hours"),
    *("stars", "review_count", "open"),
]
# `open` was true or false until 2016, `is_open` is 1 or 0 since.
_OPEN = {"yes": "yes", "true": "yes", "1": "yes", "no": "no", "false": "no", "0": "no"}


def read_yelp(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """Reviews as interactions, businesses as items.

    Raises:
        MissingError: no `--source`: Yelp's licence asks everybody to download it themselves.
        WrongUseError, BadDataError: as `find_files`.
    """
    if not settings.source:
        raise MissingError("the Yelp data set must be downloaded by hand", hint=preset.manual)
    found = find_files(root / settings.source, ROLES, expected=EXPECTED)
    businesses, reviews = found["businesses"], found["reviews"]
    tally = Tally()
    files = sorted({reviews.path, businesses.path})
    roles = {"user_id": "user_id", "business_id": "item_id", "date": "timestamp", "stars": "rating"}
    # Both begin before the businesses are read, which keeps one core busy only.
    batches = read_ahead(partial(scan_jsonl, reviews, list(roles)), report)
    hashes = FileHashes(files)
    items = items_table(json_records(businesses, parse_object, report), _business, COLUMNS, businesses.name, tally)

    return RawData(
        log=(replace(batch, frame=batch.frame.rename(roles)) for batch in batches),
        log_name=reviews.name,
        items=items,
        items_name=businesses.name,
        attributes=COLUMNS,
        tally=tally,
        files=files,
        edition=settings.edition or _edition(items),
        instruction=preset.instruction,
        hashes=hashes,
    )


def _business(record: Record) -> dict[str, str]:
    return {
        "item_id": as_text(record.get("business_id")).strip(),
        "title": plain_text(record.get("name")),
        # A list until 2017, one text with commas since.
        "categories": plain_text(record.get("categories")),
        "city": plain_text(record.get("city")),
        "state": plain_text(record.get("state")),
        "neighborhoods": plain_text(record.get("neighborhoods", record.get("neighborhood"))),
        "address": plain_text(record.get("address", record.get("full_address"))),
        "features": features(record.get("attributes")),
        "hours": _hours(record.get("hours")),
        "stars": plain_text(record.get("stars")),
        "review_count": plain_text(record.get("review_count")),
        "open": _OPEN.get(as_text(record.get("is_open", record.get("open"))).lower(), ""),
    }


def _hours(value: object) -> str:
    """`{"Monday": "8:0-18:30"}` (since 2018) or `{"Monday": {"open": "08:00", "close": "18:30"}}` as text."""
    if not isinstance(value, dict):
        return plain_text(value)
    days = []
    for day, hours in value.items():
        if isinstance(hours, dict):
            hours = f"{hours.get('open', '')}-{hours.get('close', '')}"
        if text := plain_text(hours):
            days.append(f"{day} {text}")
    return ", ".join(days)


def _edition(items: object) -> str:
    import polars as pl

    assert isinstance(items, pl.DataFrame)
    has = {name for name in ("neighborhoods", "hours", "features") if items[name].null_count() < len(items)}
    if not has - {"neighborhoods"}:
        return "2013 (no attributes and no hours: the RecSys 2013 challenge or the first academic release)"
    if "neighborhoods" in has:
        return "2014 to 2018 (businesses have neighborhoods)"
    return "2018 or later (no neighborhoods)"
