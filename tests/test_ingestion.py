"""Reading at size: memory, order and results do not depend on how the work is cut up."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmemb_cli.datasets.hashes import FileHashes
from llmemb_cli.datasets.readers import ahead, jsonl
from llmemb_cli.datasets.readers.chunks import Batch, Chunk
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.rules import time_order
from llmemb_cli.errors import LlmembError
from llmemb_cli.progress import Reporter
from tests.dataset_fixtures import prepare

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
USERS, ITEMS, EACH = 130, 110, 8


def reviews(text: str = "fine", moment: str = "2020-01-01 00:00:00") -> list[str]:
    """Lines in which users take turns; all at one moment, so that the order of lines is the order of time."""
    return [
        json.dumps(
            {
                "user_id": f"u{user}",
                "business_id": f"b{(user * 7 + turn * 13) % ITEMS}",
                "stars": 4.0,
                "text": text,
                "date": moment,
            }
        )
        for turn in range(EACH)
        for user in range(USERS)
    ]


def write_dump(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "review.json").write_text("\n".join(lines) + "\n")
    businesses = [json.dumps({"business_id": f"b{n}", "name": f"Place {n}"}) for n in range(ITEMS)]
    (folder / "business.json").write_text("\n".join(businesses) + "\n")
    return folder


def run_python(code: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ties_in_time_keep_the_order_of_the_source(tmp_path: Path) -> None:
    lines = reviews()
    source = write_dump(tmp_path / "yelp", lines)
    rows = prepare(tmp_path / "ws", "yelp", source=source).rows()
    records = [json.loads(line) for line in lines]
    expected = [
        (f"u{user}", record["business_id"])
        for user in range(USERS)
        for record in records
        if record["user_id"] == f"u{user}"
    ]
    assert [row[:2] for row in rows] == expected


PREPARE = """
import functools, sys
from pathlib import Path
from llmemb_cli.datasets.create import create_workspace
from llmemb_cli.datasets.readers import chunks, jsonl
from llmemb_cli.progress import Reporter
source, target, size = sys.argv[1:]
jsonl.line_chunks = functools.partial(chunks.line_chunks, size=int(size))
jsonl.PIECE = max(int(size) // 4, 200)
create_workspace(Path(target), {"data.dataset": "yelp", "data.source": source}, Reporter())
"""


def test_any_block_size_and_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    lines = reviews()
    lines[5] = lines[5][:40]
    lines[300] = ""
    lines[700] = lines[700].replace('"u', '"\\u0000u', 1)
    lines[701] = lines[701].replace('"2020', '"in 2020')
    source = write_dump(tmp_path / "yelp", lines)
    outputs = []
    for threads, size in (("1", 8 << 20), ("2", 7_000), ("4", 300)):
        root = tmp_path / f"ws{threads}"
        run_python(PREPARE, source, root, size, POLARS_MAX_THREADS=threads)
        names = ("items.parquet", "interactions.parquet", "rejected.jsonl", "stats.json", "card.md")
        outputs.append({name: (root / "data" / name).read_bytes() for name in names})
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]["rejected.jsonl"].splitlines()) == 3


PEAK = """
import sys
from pathlib import Path
from llmemb_cli.datasets.raw import Tally
from llmemb_cli.datasets.readers.chunks import line_chunks
from llmemb_cli.datasets.readers import jsonl
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.rules import check_interactions
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.make import peak_memory_mb
import functools
jsonl.line_chunks = functools.partial(line_chunks, size=256 << 10)
roles = {"user_id": "user_id", "business_id": "item_id", "date": "timestamp", "stars": "rating"}
def read(path):
    rows, kept = 0, []
    for batch in jsonl.scan_jsonl(plain_file(Path(path)), list(roles), Reporter()):
        kept.append(check_interactions(batch.frame.rename(roles), None, "log", Tally()))
        rows += batch.rows_read
    return rows
read(sys.argv[1])
before = peak_memory_mb()
rows, after = read(sys.argv[2]), peak_memory_mb()
whole = Path(sys.argv[2]).read_bytes()
print(rows, before, after, peak_memory_mb())
"""


def test_memory_does_not_grow_with_the_length_of_the_file(tmp_path: Path) -> None:
    """The same interactions of the same users, in 2 MB and in 42 MB of text."""
    short, long = tmp_path / "short.json", tmp_path / "long.json"
    short.write_text("\n".join(reviews("x" * 2_000)) + "\n")
    long.write_text("\n".join(reviews("x" * 40_000)) + "\n")
    rows, before, after, at_once = map(int, run_python(PEAK, short, long, POLARS_MAX_THREADS="2").split())
    assert rows == USERS * EACH
    # Some blocks of 256 KB are under way at a time; what is kept of them is 20 bytes a row.
    assert after - before < 12
    # The measure sees what it is asked for: the file read at once.
    assert at_once - before > 30


def test_one_damaged_line_sends_few_others_the_slow_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"user_id": f"u{n}", "text": "y" * 400}) for n in range(3_000)]
    lines[1_500] = lines[1_500][:-5]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(lines))
    slowly: list[str] = []
    parse = jsonl.parse_object
    monkeypatch.setattr(jsonl, "parse_object", lambda text: (slowly.append(text), parse(text))[1])
    batches = list(jsonl.scan_jsonl(plain_file(file), ["user_id"], Reporter()))
    assert sum(len(batch.frame) for batch in batches) == 2_999
    assert [reject.line for batch in batches for reject in batch.rejects] == [1_501]
    assert len(slowly) <= jsonl.PIECE // 400 + 1


@given(data=st.binary(max_size=200), size=st.integers(1, 60), first=st.integers(1, 9))
def test_pieces_of_a_block_are_its_lines(data: bytes, size: int, first: int) -> None:
    data = data.replace(b"a", b"\n")
    chunk = Chunk(data, first, data.count(b"\n") + (not data.endswith(b"\n")))
    pieces = chunk.pieces(size)
    assert b"".join(piece.data for piece in pieces) == data
    place = first
    for piece in pieces:
        assert piece.first == place and (piece.data.endswith(b"\n") or piece is pieces[-1])
        place += piece.lines
    assert place == first + chunk.lines or not data


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(-(2**62), 2**62) | st.integers(0, 3)), max_size=40),
)
@example(rows=[(0, 2**62), (1, -(2**62)), (0, -(2**62)), (1, 2**62), (0, 2**62)])
@settings(max_examples=150)
def test_time_order_is_a_stable_sort(rows: list[tuple[int, int]]) -> None:
    user = np.array([row[0] for row in rows], dtype=np.int32)
    times = np.array([row[1] for row in rows], dtype=np.int64)
    assert time_order(user, times).tolist() == sorted(range(len(rows)), key=rows.__getitem__)


def made_batches(count: int, rows: int, taken: list[int]) -> Iterator[Batch]:
    for number in range(count):
        taken.append(number)
        yield Batch(pl.DataFrame({"n": np.full(rows, number)}), rows, [])


def test_reading_ahead_begins_at_once_keeps_the_order_and_stays_within_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = 1_000
    monkeypatch.setattr(ahead, "AHEAD", 5 * rows * 8)
    taken: list[int] = []
    batches = ahead.read_ahead(lambda report: made_batches(40, rows, taken), Reporter())
    deadline = time.monotonic() + 60
    while len(taken) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(taken) == 5
    for number in range(40):
        assert next(batches).frame["n"][0] == number
        assert len(taken) <= number + 1 + 5 + 1
    assert next(batches, None) is None


def test_an_error_while_reading_ahead_comes_out_in_its_place() -> None:
    def read(report: Reporter) -> Iterator[Batch]:
        yield from made_batches(2, 3, [])
        raise LlmembError("cannot read")

    batches = ahead.read_ahead(read, Reporter())
    assert [next(batches).frame["n"][0], next(batches).frame["n"][0]] == [0, 1]
    with pytest.raises(LlmembError, match="cannot read"):
        next(batches)


class Shown(Reporter):
    def __init__(self) -> None:
        self.labels: list[str] = []

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Any:
        self.labels.append(label)
        return super().task(label, total, unit, done)


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b", "a")]
    for path in paths:
        path.write_bytes(path.name.encode() * 100_000)
    found = FileHashes(paths).result(Shown())
    assert found == [
        {"name": path.name, "bytes": 100_000, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in paths
    ]
    with pytest.raises(LlmembError, match="cannot read") as caught:
        FileHashes([tmp_path / "gone"]).result(Shown())
    assert "gone" in (caught.value.where or "")


def test_made_up_dump_is_prepared_as_a_plain_loop_does(tmp_path: Path) -> None:
    size = ["--reviews", "6000", "--users", "1500", "--businesses", "300"]
    for name in ("one", "two"):
        make = [sys.executable, BENCHMARKS / "make_yelp.py", *size, "--seed", "7", "--out", tmp_path / name]
        subprocess.run(make, check=True, capture_output=True)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["yelp_academic_dataset_business.json", "yelp_academic_dataset_review.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    compare = [sys.executable, BENCHMARKS / "init.py", "--source", tmp_path / "one", "--plain"]
    done = subprocess.run(compare, capture_output=True, text=True, check=True)
    assert "same sequences, in the same order" in done.stdout
