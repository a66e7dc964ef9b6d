"""Every data set preset: one consistent entry, and a workspace from files with its schema."""

from __future__ import annotations

import gzip
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llmemb_cli.config.data import PREPARATIONS, DataSettings
from llmemb_cli.config.settings import load_settings
from llmemb_cli.datasets.amazon import DEFAULT_EDITION, EDITIONS
from llmemb_cli.datasets.presets import PRESETS, SHOWN, DatasetPreset, find_preset
from tests.amazon_records import (
    METADATA_2014,
    METADATA_2018,
    METADATA_2023,
    REVIEWS_2014,
    REVIEWS_2018,
    REVIEWS_2023,
)
from tests.dataset_fixtures import Files, Record, json_lines, prepare, python_lines, write_files
from tests.movielens_records import ML_1M, ML_100K, latest
from tests.yelp_records import YELP_2020

AMAZON: dict[str, tuple[list[Record], list[Record]]] = {
    "2014": (REVIEWS_2014, METADATA_2014),
    "2018": (REVIEWS_2018, METADATA_2018),
    "2023": (REVIEWS_2023, METADATA_2023),
}
OWN = {
    "log.csv": b"user_id,item_id,timestamp\nu1,10,5\nu1,11,6\nu2,10,7\n",
    "items.csv": b"item_id,title\n10,Ten\n11,Eleven\n",
    "s.txt": b"u1 10 11\nu2 10\n",
    "t.txt": b"10\tTen\n11\tEleven\n",
    "x.inter": b"user_id:token\titem_id:token\ttimestamp:float\nu1\t10\t5\nu1\t11\t6\nu2\t10\t7\n",
    "x.item": b"item_id:token\titem_name:token_seq\n10\tTen\n11\tEleven\n",
}
FIXTURES: dict[str, Files] = {
    "yelp": YELP_2020,
    "ml-100k": ML_100K,
    "ml-1m": ML_1M,
    **{name: latest(name) for name in ("ml-latest-small", "ml-32m")},
    **dict.fromkeys(("recbole", "sequences", "custom"), OWN),
}


def amazon_files(category: str, edition: str) -> Files:
    """As the edition's site names them."""
    reviews, metadata = AMAZON[edition]
    written = python_lines(metadata) if edition == "2014" else json_lines(metadata)
    site = EDITIONS[edition]
    names = [addresses[0].format(category).rsplit("/", 1)[-1] for addresses in (site.reviews, site.metadata)]
    return {names[0]: gzip.compress(json_lines(reviews)), names[1]: gzip.compress(written)}


def where(preset: DatasetPreset, folder: Path) -> dict[str, Any]:
    """The settings that point at the fixture's files."""
    if preset.name == "custom":
        return {"interactions": str(folder / "log.csv"), "items": str(folder / "items.csv")}
    if preset.name == "sequences":
        return {"source": folder / "s.txt", "items": str(folder / "t.txt")}
    return {"source": folder}


CASES = [
    (preset.name, edition)
    for preset in PRESETS.values()
    for edition in (sorted(preset.categories) if preset.categories else [""])
]


@pytest.mark.parametrize(("name", "edition"), CASES)
def test_every_preset_makes_a_workspace_from_files_with_its_schema(tmp_path: Path, name: str, edition: str) -> None:
    preset = PRESETS[name]
    files = amazon_files(preset.categories[edition], edition) if edition else FIXTURES[name]
    data = prepare(tmp_path / "ws", name, **where(preset, write_files(tmp_path / "in", files)))
    assert data.stats["interactions"] >= 2 and data.stats["items"] >= 2 and data.stats["rejected"] == 0
    assert data.accounts_for_every_row()
    assert data.stats["dataset"] == name and data.stats["instruction"] == preset.instruction
    assert edition in data.stats["source"]["edition"] and data.stats["source"]["licence"] == preset.licence
    assert "title" in data.stats["attributes"]
    for item, prompt in data.prompts().items():
        first, _, rest = prompt.partition("\n")
        assert first == preset.instruction and " is " in rest, item
    card = (data.workspace.data / "card.md").read_text()
    assert preset.licence in card and name in card


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_entry_is_consistent(preset: DatasetPreset) -> None:
    assert find_preset(preset.name) is preset and preset.name == preset.name.lower()
    assert preset.title and preset.edition and preset.licence
    assert preset.instruction.startswith("The ") and preset.instruction.endswith(" has the following attributes:")
    module, function = preset.reader.split(":")
    assert callable(getattr(import_module(module), function))
    assert set(preset.uses) <= set(DataSettings.model_fields)
    for published in preset.published:
        assert published.users > 0 and published.items > 0 and published.interactions >= published.users
        assert published.source
    if preset.categories:
        assert set(preset.categories) <= set(EDITIONS)
        assert DEFAULT_EDITION.get(preset.name, max(preset.categories)) in preset.categories
        assert {"source", "edition"} <= set(preset.uses)
    else:
        assert f"`llmemb init {preset.name} " in preset.manual and preset.name in SHOWN


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("name", ["yelp", "beauty", "ml-1m"])
def test_every_preparation_works_on_real_schemas(tmp_path: Path, name: str, preparation: str) -> None:
    rules = PREPARATIONS[preparation]
    files = amazon_files("Beauty", "2014") if name == "beauty" else FIXTURES[name]
    source = write_files(tmp_path / "in", files)
    # Two reviewers and two items are far below any minimum: what is asked here is what the rules are.
    data = prepare(tmp_path / "ws", name, source=source, **(rules | {"filter": "none"}))
    kept = load_settings(data.workspace.settings_file).data
    assert {key: getattr(kept, key) for key in rules if key != "filter"} == {
        key: value for key, value in rules.items() if key != "filter"
    }
    leaking = {"stars", "review_count", "open", "sales_rank"} & set(data.stats["attributes"])
    assert bool(leaking) == (name != "ml-1m" and bool(rules.get("leaking")))
