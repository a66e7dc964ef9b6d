"""Amazon reviews, editions 2014, 2018 and 2023."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llmemb_cli.assets.fetch import Asset, Source, fetch
from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.amazon import DEFAULT_EDITION, EDITIONS, AmazonEdition
from llmemb_cli.datasets.columns import LEAKING
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.ahead import read_ahead
from llmemb_cli.datasets.readers.catalogue import items_table, parse_python_object, plain_text, words
from llmemb_cli.datasets.readers.chunks import Batch
from llmemb_cli.datasets.readers.jsonl import Record, as_text, json_keys, json_records, parse_object, scan_jsonl
from llmemb_cli.datasets.readers.sources import find_files, plain_file
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter

COLUMNS = [
    *("title", "brand", "categories", "price", "features", "description", "details"),
    *("sales_rank", "date", "average_rating", "rating_number"),
]
SAMPLE = 1000
# Keys of reviews that only one edition has.
MARKS = (("2023", {"parent_asin", "user_id"}), ("2018", {"verified", "vote", "style"}), ("2014", {"helpful"}))
_PRICE = re.compile(r"(?:from )?\$?\s?\d[\d,]*(\.\d+)?(\s?-\s?\$?\s?\d[\d,]*(\.\d+)?)?")
# Details that tell how popular a product is or when it came, and its id, which tells nothing.
_LEAKING_DETAILS = re.compile(
    r"asin|.*best ?sellers rank|.*customer reviews?|date first.*|.*(release|publication) date", re.IGNORECASE
)


def read_amazon(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """Reviews as interactions, metadata as items, from `--source` or the edition's site.

    Raises:
        WrongUseError: an edition that the category is not in, or files that are not there.
        BadDataError: the reviews are of another edition than the one asked for.
        MissingError: the site cannot be reached.
    """
    asked = settings.edition
    if asked and asked not in EDITIONS:
        raise WrongUseError(f"no Amazon edition {asked}", hint="--edition 2014, 2018 or 2023")
    if settings.source:
        reviews, metadata = _local(root / settings.source, preset)
        edition = _detect(reviews, asked)
    else:
        edition = EDITIONS[asked or DEFAULT_EDITION.get(preset.name, max(preset.categories))]
        reviews, metadata = _download(preset, edition, report)
    tally, unreadable = Tally(), Counter[str]()
    log = _log(reviews, edition, report)
    items = items_table(
        json_records(metadata, _parse_metadata, report),
        partial(_product, unreadable=unreadable),
        COLUMNS,
        metadata.name,
        tally,
    )
    return RawData(
        log=log,
        log_name=reviews.name,
        items=items,
        items_name=metadata.name,
        attributes=COLUMNS,
        tally=tally,
        files=[reviews.path, metadata.path],
        edition=f"Amazon {edition.name} ({edition.span})",
        instruction=preset.instruction,
        unreadable=unreadable,
    )


def _log(reviews: RawFile, edition: AmazonEdition, report: Reporter) -> Iterator[Batch]:
    roles = {edition.user: "user_id", edition.item: "item_id", edition.time: "timestamp", edition.rating: "rating"}
    batches = read_ahead(partial(scan_jsonl, reviews, list(roles)), report)
    return (replace(batch, frame=batch.frame.rename(roles)) for batch in batches)


def _local(source: Path, preset: DatasetPreset) -> tuple[RawFile, RawFile]:
    """The reviews and the metadata in `source`, a folder, an archive, or the file with the reviews."""
    names = "|".join(map(re.escape, sorted(set(preset.categories.values()))))
    expected = f"the reviews and meta_*.json.gz of {' or '.join(sorted(set(preset.categories.values())))}"
    ending = r"\.jsonl?(\.gz)?"
    metadata = rf"meta_({names}){ending}"
    if re.search(ending + "$", source.name) and not source.name.startswith("meta_"):
        reviews = plain_file(source)
        category = re.sub(rf"^reviews_|(_5)?{ending}$", "", source.name)
        found = find_files(
            source.parent, {"metadata": rf"meta_({names}|{re.escape(category)}){ending}"}, expected=expected
        )
        return reviews, found["metadata"]
    found = find_files(
        source, {"reviews": rf"(reviews_)?({names})(_5)?{ending}", "metadata": metadata}, expected=expected
    )
    return found["reviews"], found["metadata"]


def _detect(reviews: RawFile, asked: str) -> AmazonEdition:
    keys = set(json_keys(reviews, Reporter(), SAMPLE))
    found = next((name for name, marks in MARKS if marks & keys), None)
    if found is None and asked:
        found = asked
    if found is None or not {EDITIONS[found].user, EDITIONS[found].item} <= keys:
        raise BadDataError(
            f"these reviews are of no known edition; their keys are {', '.join(sorted(keys))}",
            where=reviews.where,
            hint="say it with --edition 2014, 2018 or 2023, or read the file with `llmemb init custom`",
        )
    if asked and asked != found:
        raise BadDataError(
            f"these reviews are of edition {found}, not {asked}", where=reviews.where, hint=f"--edition {found}"
        )
    return EDITIONS[found]


def _download(preset: DatasetPreset, edition: AmazonEdition, report: Reporter) -> tuple[RawFile, RawFile]:
    category = preset.categories.get(edition.name)
    if category is None:
        there = ", ".join(sorted(preset.categories))
        raise WrongUseError(f"{preset.name} is in edition {there} only", hint=f"--edition {max(preset.categories)}")
    files = []
    for addresses in (edition.reviews, edition.metadata):
        urls = [address.format(category) for address in addresses]
        filename = urls[0].rsplit("/", 1)[-1]
        manual = (
            f"download the reviews and metadata of {category} from {edition.page} into one folder and run "
            f"`llmemb init {preset.name} --source FOLDER`"
        )
        # The site publishes no hashes; what was read is recorded in the data card.
        asset = Asset(f"amazon-{edition.name}", filename, "", tuple(Source("http", url) for url in urls), manual)
        files.append(plain_file(fetch(asset, report)))
    return files[0], files[1]


def _parse_metadata(text: str) -> Record:
    """JSON since 2018; Python dictionaries in 2014, with their single quotes."""
    if text.lstrip()[:2] in ("{'", "{u"):
        return parse_python_object(text)
    return parse_object(text)


def _product(record: Record, unreadable: Counter[str]) -> dict[str, str]:
    return {
        "item_id": as_text(record.get("parent_asin") or record.get("asin")).strip(),
        "title": _title(record.get("title")),
        "brand": plain_text(record.get("brand") or record.get("store")),
        "categories": _categories(record.get("categories") or record.get("category")),
        "price": _price(record.get("price"), unreadable),
        "features": plain_text(record.get("features") or record.get("feature")),
        "description": plain_text(record.get("description")),
        "details": _details(record.get("details")),
        "sales_rank": plain_text(record.get("salesRank") or record.get("rank")),
        "date": plain_text(record.get("date")),
        "average_rating": plain_text(record.get("average_rating")),
        "rating_number": plain_text(record.get("rating_number")),
    }


def _title(value: Any) -> str:
    title = plain_text(value)
    # The 2018 crawl caught the page's scripts in some titles.
    return "" if "getTime(" in title or title.startswith("var ") else title


def _categories(value: Any) -> str:
    """The path of the first category: 2014 has a list of paths, the others one path."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return plain_text(value)


def _price(value: Any, unreadable: Counter[str]) -> str:
    text = plain_text(value)
    if text and not _PRICE.fullmatch(text):
        unreadable["price"] += 1
        return ""
    return text


def _details(value: Any) -> str:
    """The product details as "name: value", without those that tell its popularity or date."""
    if isinstance(value, str):
        try:
            value = parse_object(value)
        except ValueError:
            return plain_text(value)
    if not isinstance(value, dict):
        return plain_text(value)
    parts = []
    for key, inner in value.items():
        # In 2018 keys are "\\n    Item Weight: \\n    " and values end where a link began: "6.4 ounces (".
        name, text = plain_text(str(key)).rstrip(": "), plain_text(inner).removesuffix(" (")
        if text and name.lower() not in LEAKING and not _LEAKING_DETAILS.fullmatch(name):
            parts.append(f"{words(name)}: {text}")
    return ", ".join(parts)
