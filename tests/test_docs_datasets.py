"""docs/datasets.md: its commands do what it says, its tables say what is there."""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmemb_cli.app import app
from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.amazon import EDITIONS
from llmemb_cli.datasets.columns import LEAKING
from llmemb_cli.datasets.presets import PRESETS
from llmemb_cli.datasets.readers import amazon, yelp

PAGE = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
ITEMS, USERS = 110, 140
Event = tuple[int, int, int, int]


@pytest.fixture
def events() -> list[Event]:
    """User, item, time between April 2000 and March 2001, stars."""
    rng = random.Random(5)
    return [
        (user, rng.randrange(ITEMS), 956_700_000 + rng.randrange(28_000_000), rng.randint(1, 5))
        for user in range(USERS)
        for _ in range(9)
    ]


def lines(records: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def make_yelp(folder: Path, events: list[Event]) -> None:
    names = ("yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json")
    (folder / "yelp_folder").mkdir()
    contents = (
        lines(
            [
                {"user_id": f"u{u}", "business_id": f"b{i}", "stars": s, "date": f"2014-01-{t % 28 + 1:02d} 10:00:00"}
                for u, i, t, s in events
            ]
        ),
        lines([{"business_id": f"b{n}", "name": f"Café {n}", "categories": "Food, Bars"} for n in range(ITEMS)]),
    )
    for name, content in zip(names, contents, strict=True):
        (folder / "yelp_folder" / name).write_bytes(content)
    with tarfile.open(folder / "yelp_dataset.tar", "w") as archive:
        for name in names:
            archive.add(folder / "yelp_folder" / name, name)


def make_amazon(folder: Path, events: list[Event]) -> None:
    def reviews(mark: dict[str, object]) -> bytes:
        return lines(
            [
                {"reviewerID": f"U{u}", "asin": f"A{i}", "unixReviewTime": t, "overall": s} | mark
                for u, i, t, s in events
            ]
        )

    for name in ("beauty2014", "fashion2018"):
        (folder / name).mkdir()
    with gzip.open(folder / "beauty2014" / "reviews_Beauty.json.gz", "wb") as file:
        file.write(reviews({"helpful": [0, 0]}))
    with gzip.open(folder / "beauty2014" / "meta_Beauty.json.gz", "wb") as file:
        file.write("".join(str({"asin": f"A{n}", "title": f"Cream {n}"}) + "\n" for n in range(ITEMS)).encode())
    (folder / "fashion2018" / "AMAZON_FASHION.json").write_bytes(reviews({"verified": True}))
    items = [{"asin": f"A{n}", "title": f"Hat {n}", "rank": f"{n} in Hats"} for n in range(ITEMS)]
    (folder / "fashion2018" / "meta_AMAZON_FASHION.json").write_bytes(lines([dict(item) for item in items]))


def make_others(folder: Path, events: list[Event]) -> None:
    with zipfile.ZipFile(folder / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "".join(f"{u}::{i}::{s}::{t}\n" for u, i, t, s in events))
        archive.writestr("ml-1m/movies.dat", "".join(f"{n}::Film {n} (1999)::Drama\n" for n in range(ITEMS)))
    (folder / "log.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t, _ in events)
    )
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{n},Thing {n}\n" for n in range(ITEMS)))
    (folder / "clicks.jsonl").write_bytes(lines([{"visitor": u, "product": i, "at": t} for u, i, t, _ in events]))
    tables = folder / "ml-1m-recbole"
    tables.mkdir()
    (tables / "ml-1m.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t, _ in events)
    )
    (tables / "ml-1m.item").write_text(
        "item_id:token\tmovie_title:token_seq\n" + "".join(f"{n}\tFilm {n}\n" for n in range(ITEMS))
    )
    sequences: dict[int, list[int]] = {}
    for user, item, *_ in sorted(events, key=lambda event: event[2]):
        sequences.setdefault(user, []).append(item)
    (folder / "beauty.txt").write_text(
        "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in sequences.items())
    )
    (folder / "texts.txt").write_text("".join(f"{n}\tCream {n}\n" for n in range(ITEMS)))


def test_every_command_of_the_page_runs(tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (make_yelp, make_amazon, make_others):
        make(tmp_path, events)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("llmemb ")]
    offline = [command for command in commands if "# downloads" not in command]
    assert len(commands) - len(offline) == 2 and len(offline) >= 11
    for command in offline:
        done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}"
    card = json.loads((tmp_path / "ml-time" / "data" / "stats.json").read_text())
    assert card["rules"]["valid_from"] == "2000-12-01" and card["split_rows"]["test"] > 0
    assert json.loads((tmp_path / "fashion" / "data" / "stats.json").read_text())["preset"] == "paper"
    assert (tmp_path / "popularity.png").stat().st_size and (tmp_path / "popularity.svg").stat().st_size


def test_every_preset_and_flag_of_preparation_is_on_the_page() -> None:
    for name, preset in PRESETS.items():
        assert preset.categories or f"`{name}`" in PAGE or f"init {name}" in PAGE, name
        for published in preset.published:
            assert f"{published.users:,}" in PAGE and f"{published.items:,}" in PAGE
    rules = set(DataSettings.model_fields) - {"dataset", "tail_share", "allow_small"}
    missing = {name for name in rules if f"--{name.replace('_', '-')}" not in PAGE}
    assert missing <= {"encoding", "rating_column", "title_column", "item_column"}
    for edition in EDITIONS.values():
        assert edition.page in PAGE and f"| {edition.name} |" in PAGE


@pytest.mark.parametrize(("section", "columns"), [("## Yelp", yelp.COLUMNS), ("## Amazon", amazon.COLUMNS)])
def test_tables_of_attributes_say_which_leak(section: str, columns: list[str]) -> None:
    text = PAGE.split(section, 1)[1].split("\n## ", 1)[0]
    inside, leaking = re.findall(r"\n\|---\|---\|\n\| (.*?) \| (.*?) \|\n", text)[0]
    names = [re.sub(r" \(.*?\)", "", cell).split(", ") for cell in (inside, leaking)]
    assert names == [[name for name in columns if name not in LEAKING], [name for name in columns if name in LEAKING]]
