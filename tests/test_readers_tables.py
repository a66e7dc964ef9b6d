"""Tables of any kind: JSON Lines, separated text, Parquet, RecBole's tables, sequence files.

The readers go through polars where a block is in order and through Python where it is not, in blocks of any size:
here both ways, blocks of any size and slow obvious references must give the same.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmemb_cli.datasets.readers import chunks, delimited, jsonl, rows, sequences
from llmemb_cli.datasets.readers.chunks import LINE, Batch
from llmemb_cli.datasets.readers.delimited import Layout, scan_delimited, sniff
from llmemb_cli.datasets.readers.jsonl import as_text, scan_jsonl
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.datasets.readers.tabular import read_table
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter

Outcome = tuple[list[tuple[Any, ...]], int, list[tuple[int, str, str]]]
EXAMPLES = settings(max_examples=100, deadline=None)


def in_memory(data: bytes, name: str = "x.csv") -> RawFile:
    return RawFile(name, Path("/nowhere") / name, lambda: io.BytesIO(data))


def outcome(batches: Iterator[Batch]) -> Outcome:
    """Rows with their lines, rows read, rejects."""
    done = list(batches)
    rejects = [(r.line, r.reason, r.text) for batch in done for r in batch.rejects]
    return [row for batch in done for row in batch.frame.rows()], sum(batch.rows_read for batch in done), rejects


@contextmanager
def blocks_of(module: Any, size: int) -> Iterator[None]:
    with mock.patch.object(module, "line_chunks", partial(chunks.line_chunks, size=size)):
        yield


@contextmanager
def without_polars() -> Iterator[None]:
    with (
        mock.patch.object(jsonl, "_fast", lambda *_: None),
        mock.patch.object(delimited._Reader, "_fast", lambda *_: None),
    ):
        yield


# JSON Lines

values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.integers(-(10**40), 10**40), st.floats(), st.text(max_size=5)),
        st.text(alphabet='"\\\n\r\t\x00 [{:,tue', max_size=5),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
records = st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3)
good_lines = st.builds(
    lambda record, ascii_only: json.dumps(record, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"),
    records,
    st.booleans(),
)
ODD_LINES = [
    *(b"", b" ", b"\r", b"\t", b"\x0b", b"[1]", b"{}", b"null", b"5", b'{"a":1', b'{"a":1}{"a":2}', b'{"a":1,}'),
    *(b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}', b'{"z":"\xff","a":1}', b'{"a":"\\ud800"}', b'{"z":"\\ud800"}'),
    *(b'{"a":"\\u0000"}', b'{"a":01}', b'{"a":1}\r', b'{"a":1e400}', b'{"a":"x\ty"}', b"{'a':1}", b'{"a":1}x'),
    *(b'{"z":01,"a":1}', b'{"a":-}', b'{"a":.5}', b'{"a":+5}', b'{"a":0x1}', b'{"a":"\\x"}', b'{"z":"\\u12","a":1}'),
    *(b'{"a":"\xed\xa0\x80"}', b'{"a":-0.0}', b'{"a":1e22}', b'{"a":1e-7}', b'{"a":9007199254740993.0}'),
    *(b'{"a":1,"a":2}', b'{"a":NaN}', b'{"z":Infinity,"a":1}', b'{"z":1e999,"a":1}', b"\x1f\x8b\x08{}", b"x\x01{}"),
    *(b'{"a":' + b"[" * 2000, b'{"z":' + b"[" * 900 + b"]" * 900 + b"}", b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"),
    b'{"a":' + b"9" * 5000 + b"}",
]
json_texts = st.builds(
    lambda lines, end, last: end.join(lines) + (end if last else b""),
    st.lists(st.one_of(good_lines, good_lines, st.sampled_from(ODD_LINES), st.binary(max_size=12)), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)


@given(data=json_texts, size=st.integers(1, 60))
@EXAMPLES
def test_json_lines_read_the_same_both_ways_and_in_blocks_of_any_size(data: bytes, size: int) -> None:
    file = in_memory(data, "x.jsonl")
    with without_polars():
        slow = outcome(scan_jsonl(file, ["a", "b"], Reporter()))
    assert outcome(scan_jsonl(file, ["a", "b"], Reporter())) == slow
    with blocks_of(jsonl, size):
        assert outcome(scan_jsonl(file, ["a", "b"], Reporter())) == slow
    with mock.patch.object(jsonl, "PIECE", size):
        assert outcome(scan_jsonl(file, ["a", "b"], Reporter())) == slow
    used, read, rejects = slow
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert read == len(used) + len(rejects) == sum(1 for line in lines if line.strip())
    assert len({row[-1] for row in used} | {line for line, _, _ in rejects}) == read


@pytest.mark.parametrize("line", ODD_LINES)
def test_an_odd_json_line_costs_no_other(line: bytes) -> None:
    data = b'{"a":"first"}\n' + line + b'\n{"a":"last"}\n'
    for end in (b"", b"\n" * 5):
        used, read, rejects = outcome(scan_jsonl(in_memory(end + data, "x.jsonl"), ["a"], Reporter()))
        assert (used[0], used[-1]) == (("first", 1 + len(end)), ("last", 3 + len(end)))
        assert read == len(used) + len(rejects)


@given(records=st.lists(records, min_size=1, max_size=6))
@EXAMPLES
def test_json_values_are_written_out_as_a_person_reads_them(records: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    used, _, rejects = outcome(scan_jsonl(in_memory(data, "x.jsonl"), ["a"], Reporter()))
    bad = {line for line, _, _ in rejects}
    expected = []
    for line, record in enumerate(records, start=1):
        text = as_text(record.get("a"))
        if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
            assert line in bad
        else:
            expected.append((text.strip() or None, line))
    # polars and Python differ on what a blank is in the control characters alone.
    assert [(a and a.strip(), line) for a, line in used] == expected


def test_text_of_json_values() -> None:
    for value, text in (
        *((5.0, "5"), (5.5, "5.5"), (1e3, "1000"), (1e22, "1" + "0" * 22), (1e-7, "0.0000001"), (True, "yes")),
        *((None, ""), ([], ""), (["a", None, ""], "a"), ({"a": None, "b": [1, 2.0]}, "b: 1, 2"), ("x", "x")),
    ):
        assert as_text(value) == text


def test_a_key_first_seen_in_the_last_line_is_read(tmp_path: Path) -> None:
    # polars looks at the first hundred records for its schema, unless it is given one.
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' * 20_000 + '{"a": 2, "late": "here"}\n')
    table = read_table(path, ["a", "late"])
    assert table.frame["late"].to_list() == [None] * 20_000 + ["here"] and table.frame["a"][-1] == "2"
    assert read_table(path).frame.columns == ["a", "late", LINE]
    with pytest.raises(WrongUseError, match="no column lte; there are: a, late") as caught:
        read_table(path, ["lte"])
    assert caught.value.hint == "did you mean late?"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_rows_keep_the_order_of_the_file(tmp_path: Path, suffix: str) -> None:
    # polars promises no order; here numbers that no sort would leave so, over many blocks and row groups.
    numbers = [(n * 7919) % 30_011 for n in range(30_011)]
    frame = pl.DataFrame({"id": [f"u{n}" for n in numbers], "n": numbers})
    path = tmp_path / f"x.{suffix}"
    if suffix == "jsonl":
        frame.write_ndjson(path)
    elif suffix == "parquet":
        frame.write_parquet(path, row_group_size=500)
    else:
        frame.write_csv(path, separator="," if suffix == "csv" else "\t")
    with blocks_of(jsonl, 4096), blocks_of(delimited, 4096):
        table = read_table(path, ["n", "id"])
    first = 1 if suffix in ("jsonl", "parquet") else 2
    assert table.frame["n"].to_list() == [str(n) for n in numbers]
    assert table.frame[LINE].to_list() == list(range(first, first + len(numbers)))


def test_clean_blocks_go_through_polars_alone(tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a clean block was read line by line")

    (tmp_path / "x.jsonl").write_text('{"a": "é", "b": 5.0}\n' * 1000)
    (tmp_path / "x.csv").write_text("a,b\n" + "é,5\n" * 1000)
    with mock.patch.object(jsonl, "_slow", refuse), mock.patch.object(delimited._Reader, "_slow", refuse):
        for name in ("x.jsonl", "x.csv"):
            assert read_table(tmp_path / name, ["b", "a"]).frame.head(1).select("a", "b").row(0) == ("é", "5")


# Separated text

LAYOUTS = {
    "comma": Layout(["a", "b", "c"], ",", 0),
    "header of two lines": Layout(["a", "b", "c"], ",", 2),
    "semicolon, cp1252": Layout(["a", "b", "c"], ";", 0, encoding="cp1252"),
    "tab": Layout(["a", "b", "c"], "\t", 0, quoted=False),
    "two colons, latin-1": Layout(["a", "b", "c"], "::", 0, quoted=False, encoding="latin-1"),
    "one column": Layout(["a"], ",", 0),
}
cells = st.text(alphabet='ab "\n,é', max_size=6)


def written(table: list[list[str]], quote_all: bool = False) -> bytes:
    target = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(target, lineterminator="\n", quoting=quoting).writerows(table)
    return target.getvalue().encode()


tables = st.lists(st.lists(cells, min_size=3, max_size=3), max_size=6)
SEPARATORS = (b",", b";", b"\t", b"::")
LINES = [
    *(separator.join([b"a", b" \xc3\xa9 ", b"c"][:width]) for separator in SEPARATORS for width in (1, 2, 3)),
    *(separator.join([b"a", b"b", b"c", b"d"]) for separator in SEPARATORS),
    *(
        b"a,\xff,c",
        b"a;\x81;c",
        b"a,b\x00,c",
        b"a,b\r,c",
        b"",
        b",,",
        b"\t\t",
        b'a,"b',
        b'b",c',
        b'"a","b","c"',
        b'a,"b\n,c",d',
    ),
]
separated_texts = st.one_of(
    st.text(alphabet='a1,;|\t"\n\r x\x00é\x85\u2028::', max_size=40).map(str.encode),
    st.lists(st.one_of(st.sampled_from(LINES), st.sampled_from(LINES), st.binary(max_size=9)), max_size=7).map(
        b"\n".join
    ),
    st.lists(st.one_of(st.builds(written, tables, st.booleans()), st.just(b"a,b,c\n"))).map(b"".join),
)


@given(data=separated_texts, layout=st.sampled_from(list(LAYOUTS.values())), size=st.integers(1, 40))
@example(data=b'a,"b\nc,d,e\n', layout=LAYOUTS["comma"], size=6)
@example(data=b'x\x01,"\n', layout=LAYOUTS["comma"], size=3)
@example(data=b"a,b,c\na,b\n", layout=LAYOUTS["comma"], size=3)
@example(data=b"a,b,c\na,\xff,c\n", layout=LAYOUTS["comma"], size=3)
@example(data=b"a,b,c\na,b\r,c\n", layout=LAYOUTS["comma"], size=3)
@example(data=b"a,b,c\na,b\x00,c\n", layout=LAYOUTS["comma"], size=3)
@example(data=b"a\n\nb\n", layout=LAYOUTS["one column"], size=3)
@settings(max_examples=150, deadline=None)
def test_separated_text_reads_the_same_both_ways_and_in_blocks_of_any_size(
    data: bytes, layout: Layout, size: int
) -> None:
    columns = [name for name in ("c", "a") if name in layout.columns]
    file = in_memory(data)
    with without_polars():
        slow = outcome(scan_delimited(file, columns, layout, Reporter()))
    assert outcome(scan_delimited(file, columns, layout, Reporter())) == slow
    with blocks_of(delimited, size):
        assert outcome(scan_delimited(file, columns, layout, Reporter())) == slow
    used, read, rejects = slow
    starts = [row[-1] for row in used] + [line for line, _, _ in rejects]
    assert read == len(used) + len(rejects) == len(set(starts))


@given(table=tables, quote_all=st.booleans(), size=st.integers(1, 40))
@EXAMPLES
def test_what_a_csv_writer_wrote_is_read_back(table: list[list[str]], quote_all: bool, size: int) -> None:
    data = written(table, quote_all)
    with blocks_of(delimited, size):
        used, read, rejects = outcome(scan_delimited(in_memory(data), ["a", "b", "c"], LAYOUTS["comma"], Reporter()))
    expected, line = [], 1
    for row in table:
        expected.append((*(cell.strip() or None for cell in row), line))
        line += 1 + sum(cell.count("\n") for cell in row)
    assert (used, read, rejects) == (expected, len(table), [])


@given(
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    bad=st.text(alphabet='ab"," \x00é', max_size=12),
    size=st.integers(1, 40),
)
@EXAMPLES
def test_a_bad_line_costs_no_other(before: int, after: int, bad: str, size: int) -> None:
    good = b"x,y,z\n"
    data = good * before + bad.encode() + b"\n" + good * after
    with blocks_of(delimited, size):
        used, read, rejects = outcome(scan_delimited(in_memory(data), ["a", "b", "c"], LAYOUTS["comma"], Reporter()))
    kept = [row for row in used if row[-1] != before + 1]
    assert [row[-1] for row in kept] == [*range(1, before + 1), *range(before + 2, before + 2 + after)]
    assert {row[:-1] for row in kept} <= {("x", "y", "z")}
    assert read == before + after + (1 if bad else 0) and all(line == before + 1 for line, _, _ in rejects)


def test_a_quote_that_is_never_closed_is_told_of_its_line() -> None:
    data = b'1,"one,1\n' + b"2,two,2\n" * 5000 + b'3,"three,\n3",3\n4,"four'
    used, read, rejects = outcome(scan_delimited(in_memory(data), ["a", "b"], LAYOUTS["comma"], Reporter()))
    assert len(used) == 5001 and used[0][-1] == 2 and used[-1] == ("3", "three,\n3", 5002)
    assert rejects == [
        (1, "unreadable line: a quote is never closed", '1,"one,1'),
        (5004, "unreadable line: a quote is never closed", '4,"four'),
    ]
    assert read == 5003


def test_a_quoted_field_may_hold_as_many_line_ends_as_a_review_has() -> None:
    text = "line\n" * (rows.MAX_ROW_LINES - 2)
    data = written([["1", text, "x"], ["2", text * 2, "y"], ["3", "z", "z"]])
    used, _, rejects = outcome(scan_delimited(in_memory(data), ["a"], LAYOUTS["comma"], Reporter()))
    assert [row[0] for row in used] == ["1", "3"]
    assert {line for line, _, _ in rejects} == set(range(rows.MAX_ROW_LINES, 3 * rows.MAX_ROW_LINES - 3))


@pytest.mark.parametrize(
    ("name", "data", "layout"),
    [
        ("x.csv", b"user,item,t\n1,2,3\n", Layout(["user", "item", "t"], ",")),
        ("x.csv", b"\xef\xbb\xbfuser;item;t\n", Layout(["user", "item", "t"], ";")),
        ("x.csv", b'"a\nb",c\r\n1,2\r\n', Layout(["a\nb", "c"], ",", 2)),
        ("x.txt", b"user|item\n", Layout(["user", "item"], "|")),
        ("x.tsv", b'"user"\titem\n', Layout(['"user"', "item"], "\t", quoted=False)),
        ("x.inter.gz", b"user_id:token\titem_id:token\tr:float\tx:float_seq\ty:token_seq\n", None),
        ("x.csv", b"ns:user,ns:item\n", Layout(["ns:user", "ns:item"], ",")),
        ("x.csv", b"only\n", Layout(["only"], ",")),
    ],
)
def test_headers(name: str, data: bytes, layout: Layout | None) -> None:
    expected = layout or Layout(["user_id", "item_id", "r", "x", "y"], "\t", quoted=False)
    assert sniff(in_memory(data, name)) == expected


@pytest.mark.parametrize("data", [b"a,a\n1,2\n", b"\n1,2\n", b",\n", b"", '"user,item'.encode("utf-16"), b'a,"b\x00'])
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadDataError, match=r"header|UTF-16|NUL") as caught:
        sniff(in_memory(data))
    assert caught.value.where and "x.csv" in caught.value.where


# Parquet


def test_parquet_values_are_the_text_they_would_be_in_json_lines(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "id": [5.0, None, float("nan"), 2.5],
            "flag": [True, False, None, True],
            "tags": [["a", "b"], [], None, [None, "c"]],
            "marks": [[1.0, 2.5], [3.0], [], None],
            "kind": pl.Series(["x", "x", None, "y"]).cast(pl.Categorical),
            "name": [" é ", "a\x00b", "", None],
        }
    )
    frame.write_parquet(tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet")
    assert table.frame.rows() == [
        ("5", "yes", "a, b", "1, 2.5", "x", "é", 1),
        (None, None, None, None, None, None, 3),
        ("2.5", "yes", "c", None, "y", None, 4),
    ]
    assert [(r.line, r.reason) for r in table.rejects] == [(2, "unreadable line: NUL byte")] and table.rows_read == 4
    pl.DataFrame({"s": [timedelta(1)]}).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(BadDataError, match="not understood") as caught:
        read_table(tmp_path / "s.parquet")
    assert caught.value.where and caught.value.where.endswith("s.parquet, column s")
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    with pytest.raises(BadDataError, match="not a readable Parquet file"):
        read_table(tmp_path / "bad.parquet")


def test_nested_records_are_the_same_text_in_parquet_and_in_json_lines(tmp_path: Path) -> None:
    records = [
        {"id": "1", "specs": {"color": "oak", "size": {"w": 2, "h": None}}, "parts": [{"n": "leg"}, {"n": "top"}]},
        {"id": "2", "specs": {"color": None, "size": {"w": None, "h": 3.5}}, "parts": []},
        {"id": "3", "specs": None, "parts": None},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pl.DataFrame(records).write_parquet(tmp_path / "x.parquet")
    lines, parquet = (read_table(tmp_path / name).frame.rows() for name in ("x.jsonl", "x.parquet"))
    assert parquet == lines
    assert lines[0][1:3] == ("color: oak, size: w: 2", "n: leg, n: top")


# Sequences

tokens = st.sampled_from(["1", "2", "u", "é", "10"])
sequence_lines = st.one_of(
    st.lists(tokens, max_size=5).map(" ".join).map(str.encode),
    st.sampled_from([b"", b"\t", b"1", b"1 \xff", b"1 a\x00b", b"1\t2\r", b"  7   8 9  "]),
)


@given(lines=st.lists(sequence_lines, max_size=10), last=st.booleans(), size=st.integers(1, 30))
@EXAMPLES
def test_sequences_equal_a_plain_reference_in_blocks_of_any_size(lines: list[bytes], last: bool, size: int) -> None:
    data = b"\n".join(lines) + (b"\n" if last else b"")
    with blocks_of(sequences, size):
        used, read, rejects = outcome(sequences._interactions(in_memory(data, "x.txt"), Reporter()))
    expected, bad = [], []
    so_far: dict[str, int] = defaultdict(int)
    for number, line in enumerate(lines, start=1):
        fields = line.decode("utf-8", "replace").split()
        if not fields:
            continue
        if len(fields) < 2 or "\ufffd" in "".join(fields) or "\x00" in "".join(fields):
            bad.append(number)
            continue
        for item in fields[1:]:
            expected.append((fields[0], item, str(so_far[fields[0]]), number))
            so_far[fields[0]] += 1
    assert used == expected and [line for line, _, _ in rejects] == bad
    assert read == len(used) + len(rejects)
