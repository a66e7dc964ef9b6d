"""The data card against a plain computation: sizes, popularity, published figures, what became of every row."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmemb_cli.datasets.card_text import row_account
from llmemb_cli.datasets.create import create_workspace
from llmemb_cli.datasets.popularity import bin_places, count_bins
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace

DAY = 86_400
START = 1_600_000_000 // DAY * DAY
Row = tuple[str, str, int, int]


def day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def make_rows(seed: int = 3) -> list[Row]:
    """A skewed log: 160 users, 130 items, repeats, ratings, a year and a half of days."""
    rng = random.Random(seed)
    return [
        (f"u{user}", f"i{int(130 * rng.random() ** 2)}", START + rng.randrange(540) * DAY, rng.randint(1, 5))
        for user in range(160)
        for _ in range(rng.randint(2, 12))
    ]


def write(folder: Path, rows: list[Row]) -> dict[str, Any]:
    (folder / "log.csv").write_text(
        "user_id,item_id,timestamp,rating\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    (folder / "items.csv").write_text(
        "item_id,title,brand,sales_rank\n"
        + "".join(f"i{n},Thing {n},{'' if n % 3 else f'B{n}'},{n if n % 2 else ''}\n" for n in range(140))
    )
    return {"data.interactions": str(folder / "log.csv"), "data.items": str(folder / "items.csv")}


def expected(rows: list[Row], rules: dict[str, Any]) -> list[tuple[str, str, int, str]]:
    """User, item, time and part of every row that is left, by plain loops."""
    kept = [row for row in rows if row[3] >= rules.get("min_rating", 0)]
    kept = [row for row in kept if rules.get("start", "0") <= day(row[2]) < rules.get("end", "9")]
    sequences: dict[str, list[Row]] = {}
    for row in kept:
        sequences.setdefault(row[0], []).append(row)
    for sequence in sequences.values():
        sequence.sort(key=lambda row: row[2])
    if rules.get("repeats", "keep") != "keep":
        for user, sequence in sequences.items():
            order = sequence if rules["repeats"] == "first" else sequence[::-1]
            once = list({row[1]: row for row in reversed(order)}.values())
            sequences[user] = [
                row for row in sequence if row in once and row is next(r for r in order if r[1] == row[1])
            ]
    least = (rules.get("min_user", 3), rules.get("min_item", 3))
    how = rules.get("filter", "single-pass")
    while how != "none":
        items = Counter(row[1] for sequence in sequences.values() for row in sequence)
        before = sum(map(len, sequences.values()))
        sequences = {
            user: [row for row in sequence if items[row[1]] >= least[1]]
            for user, sequence in sequences.items()
            if len(sequence) >= least[0]
        }
        if how == "single-pass":
            sequences = {user: sequence for user, sequence in sequences.items() if len(sequence) >= least[0]}
            break
        sequences = {user: sequence for user, sequence in sequences.items() if sequence}
        if sum(map(len, sequences.values())) == before:
            break
    return [(*row[:3], part) for sequence in sequences.values() for row, part in labelled(sequence, rules)]


def labelled(sequence: list[Row], rules: dict[str, Any]) -> list[tuple[Row, str]]:
    if rules.get("split") != "time":
        parts = ["train"] * len(sequence)
        if len(sequence) >= 3:
            parts[-2:] = ["valid", "test"]
        return list(zip(sequence, parts, strict=True))
    made, seen = [], set()
    for row in sequence:
        period = (
            "train" if day(row[2]) < rules["valid_from"] else "valid" if day(row[2]) < rules["test_from"] else "test"
        )
        late = period != "train" and (period in seen or "train" not in seen)
        seen.add(period)
        made.append((row, "later" if late else period))
    return made


RULES: list[dict[str, Any]] = [
    {},
    {"filter": "none"},
    {"filter": "k-core", "min_user": 4, "min_item": 5},
    {"min_user": 5, "min_item": 8},
    {"min_rating": 3.0, "filter": "k-core"},
    {"start": day(START + 60 * DAY), "end": day(START + 400 * DAY)},
    {"repeats": "first"},
    {"repeats": "last", "min_item": 4},
    {"split": "time", "valid_from": day(START + 300 * DAY), "test_from": day(START + 420 * DAY)},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: " ".join(map(str, rules.values())) or "defaults")
def test_the_card_equals_a_plain_computation(tmp_path: Path, rules: dict[str, Any]) -> None:
    rows = make_rows()
    overrides = write(tmp_path, rows) | {f"data.{key}": value for key, value in rules.items()}
    workspace, result = create_workspace(tmp_path / "w", overrides | {"data.allow_small": True}, Reporter())
    card = result.manifest["summary"]
    left = expected(rows, rules)
    log = pl.read_parquet(workspace.data / "interactions.parquet")
    assert sorted(log.select("user_id", "item_id", "timestamp", "split").iter_rows()) == sorted(left)

    users, items = {row[0] for row in left}, {row[1] for row in left}
    assert (card["users"], card["items"], card["interactions"]) == (len(users), len(items), len(left))
    assert card["density"] == pytest.approx(len(left) / len(users) / len(items))
    assert card["mean_length"] == pytest.approx(len(left) / len(users))
    assert (card["first"], card["last"]) == (day(min(row[2] for row in left)), day(max(row[2] for row in left)))
    assert card["split_rows"] == {part: sum(row[3] == part for row in left) for part in card["split_rows"]}

    counts = Counter(row[1] for row in left if row[3] == "train")
    targets = [row[1] for row in left if row[3] == "test"]
    by_count = sorted(counts[item] for item in items)
    size = round(0.8 * len(items))
    assert card["tail"]["items"] == size and card["tail"]["largest_count"] == by_count[size - 1]
    # Items as popular as the tail's most popular are tail or head by their order in the catalogue.
    surely = sum(counts[item] < by_count[size - 1] for item in targets) / len(targets)
    at_most = sum(counts[item] <= by_count[size - 1] for item in targets) / len(targets)
    assert surely <= card["tail"]["share_of_test"] <= at_most
    for entry in card["popularity"]:
        inside = {item for item in items if entry["low"] <= counts[item] <= entry["high"]}
        assert entry["items"] == len(inside)
        assert entry["interactions"] == sum(counts[item] for item in inside)
        assert entry["test_users"] == sum(item in inside for item in targets)
    assert sum(entry["items"] for entry in card["popularity"]) == len(items)
    fifth = sorted(counts.values(), reverse=True)[: max(1, round(0.2 * len(items)))]
    assert card["share_of_top_fifth"] == pytest.approx(sum(fifth) / sum(counts.values()))

    known = {f"i{n}" for n in range(140)}
    brand = sum(int(item[1:]) % 3 == 0 for item in items & known) / len(items)
    assert card["attribute_share"]["brand"] == pytest.approx(brand, abs=1e-4)
    assert card["attributes"] == ["title", "brand"] and card["leaking"] == ["sales_rank"]
    for file in card["source"]["files"]:
        content = (tmp_path / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    check_accounts(card, len(rows))


def check_accounts(card: dict[str, Any], rows: int) -> None:
    """In both accounts the last number is the sum of the others, and the first is what the file holds."""
    interactions, items = row_account(card)
    for account in (interactions, items):
        assert sum(count for _, count in account[:-1]) == account[-1][1]
    assert (interactions[0][1], items[0][1]) == (rows, 140)
    assert (interactions[-1][1], items[-1][1]) == (card["interactions"], card["items"])


def test_rejects_stand_in_the_account_of_their_file(tmp_path: Path) -> None:
    overrides = write(tmp_path, make_rows())
    with (tmp_path / "log.csv").open("a") as file:
        file.write("u1,nowhere,1600000000,3\nu1,i1,soon,3\nu1,i1\n")
    with (tmp_path / "items.csv").open("a") as file:
        file.write("i1,Again,,\n,Nobody,,\n")
    _, result = create_workspace(tmp_path / "w", overrides, Reporter())
    interactions, items = row_account(result.manifest["summary"])
    assert {what: count for what, count in interactions if what.startswith("rejected")} == {
        "rejected: unknown item": -1,
        "rejected: timestamp is not a number or date": -1,
        "rejected: unreadable line: 2 fields where the header has 4": -1,
    }
    assert ("rejected: duplicate item id", -1) in items and ("rejected: item without an id", -1) in items
    for account in (interactions, items):
        assert sum(count for _, count in account[:-1]) == account[-1][1]


def amazon_beauty(folder: Path) -> Workspace:
    """A small set in the form of the 2014 edition, for which there are published figures."""
    rows = make_rows()
    (folder / "reviews_Beauty.json").write_text(
        "".join(
            json.dumps({"reviewerID": u, "asin": i, "helpful": [0, 0], "overall": r, "unixReviewTime": t}) + "\n"
            for u, i, t, r in rows
        )
    )
    (folder / "meta_Beauty.json").write_text(
        "".join(str({"asin": f"i{n}", "title": f"Cream {n}", "salesRank": {"Beauty": n}}) + "\n" for n in range(140))
    )
    values = {"data.dataset": "beauty", "data.source": str(folder), "data.leaking": True}
    return create_workspace(folder / "w", values, Reporter())[0]


def test_published_figures_stand_beside_with_the_papers_own_tail(tmp_path: Path) -> None:
    workspace = amazon_beauty(tmp_path)
    card = json.loads((workspace.data / "stats.json").read_text())
    paper, five_core = card["published"]
    assert (paper["users"], paper["items"], paper["interactions"]) == (52_204, 57_289, 394_908)
    assert round(paper["mean_length"], 2) == 7.56 and round(five_core["mean_length"], 2) == 8.88
    left = expected(make_rows(), {})
    counts = Counter(row[1] for row in left if row[3] == "train")
    targets = [row[1] for row in left if row[3] == "test"]
    assert paper["tail_below"] == 4
    assert paper["items_below_here"] == sum(counts[item] < 4 for item in {row[1] for row in left})
    share = sum(counts[item] < 4 for item in targets) / len(targets)
    assert paper["share_of_test_below_here"] == pytest.approx(share)
    text = (workspace.data / "card.md").read_text()
    assert f"| users | {card['users']:,} | 52,204 | 22,363 |" in text
    assert "fewer than 4 interactions" in text and "Amazon 2014" in text
    assert "In prompts, sales_rank tell" in text


HOSTILE = "a|b`c<script>\\"


def test_names_from_outside_break_no_table_of_the_card(tmp_path: Path) -> None:
    overrides = write(tmp_path, make_rows())
    items = (tmp_path / "items.csv").read_text()
    (tmp_path / "items.csv").write_text(items.replace("brand", f'"{HOSTILE}"', 1))
    workspace, _ = create_workspace(tmp_path / "w", overrides, Reporter())
    text = (workspace.data / "card.md").read_text()
    assert "<script>" not in text
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@given(largest=st.integers(0, 10**6), counts=st.lists(st.integers(0, 10**6)))
def test_bins_hold_every_count_once(largest: int, counts: list[int]) -> None:
    bins = count_bins(largest)
    assert bins[0].low == 0 and bins[-1].high >= largest
    assert [one.low for one in bins[1:]] == [one.high + 1 for one in bins[:-1]]
    inside = [count for count in counts if count <= largest]
    places = bin_places(pl.Series(inside, dtype=pl.Int64).to_numpy(), bins).tolist()
    assert all(bins[place].low <= count <= bins[place].high for count, place in zip(inside, places, strict=True))
