"""Item vectors made elsewhere, by a sentence encoder or an embedding service, taken into the workspace by item id."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.config.methods import external_name
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.columns import id_column, items_key
from llmemb_cli.datasets.readers.chunks import BOM, Reject, line_chunks
from llmemb_cli.datasets.readers.jsonl import Record, as_text, json_keys, json_records, parse_object, text_fault
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.datasets.readers.tabular import LINE, column_names, read_table, scan_table, table_kind
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import finish_table, open_rows
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.pipeline import external_stage
from llmemb_cli.progress import Reporter, Task
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.rows import blocks, map_rows
from llmemb_cli.workspace.stage import partial_path
from llmemb_cli.workspace.store import parquet_faults, read_parquet, sha256_file

# What a column or tensor of vectors is called, by this and other tools.
COLUMNS = ("embedding", "embeddings", "item_embedding", "item_embeddings", "vector", "vectors")
ROWS_AT_ONCE = 8192
WORD2VEC_BYTES = 1 << 22  # of text; as lists of texts the numbers take several times the room
RECORDS_AT_ONCE = 512  # numbers of Python's take eight times the room
RECORDS_LOOKED_AT = 100  # for names of fields: a line with a vector is long
Block = tuple[pl.Series, np.ndarray]


def take_vectors(
    workspace: Workspace,
    settings: Settings,
    file: Path,
    report: Reporter,
    *,
    name: str | None = None,
    ids: Path | None = None,
    force: bool = False,
) -> StageResult:
    """Write the vectors in `file` as `embeddings/<name>/`, a row an item of the workspace, with their PCA.

    Args:
        file: a table (Parquet, JSON Lines, CSV, TSV) with an id and a vector in every row; word2vec text; or a
            matrix (.npy, .safetensors), a row an item.
        name: default: from the file's name.
        ids: of a matrix: a table with the item ids in the order of its rows; default: `ids.parquet` beside it.

    Raises:
        WrongUseError: the file is none of these, or its columns or the name cannot be told.
        BadDataError: an item of the workspace has no vector, or two, or one that is zero, not finite or of another
            width; names it.
    """
    if file.is_dir():
        raise WrongUseError("a file with vectors is expected, and this is a directory", where=str(file))
    ids = _ids_of(file, ids)
    stage = external_stage(workspace, settings, name_for(file, name), file, ids)
    item_ids = read_parquet(workspace.data / "items.parquet", ["item_id"])["item_id"]

    def build(work: Path) -> dict[str, Any]:
        others = _write(work, item_ids, read_blocks(file, ids, settings, report), file)
        vectors = finish_table(work, item_ids, where=file)
        pca = fit_pca(vectors, settings.embed.pca, report)
        write_pca(work, pca)
        if others:
            report.note(f"{others} vectors are left out: of ids that the workspace does not have")
        return {
            "items": len(item_ids),
            "width": vectors.shape[1],
            "others": others,
            "files": [{"name": path.name, "sha256": sha256_file(path)} for path in (file, ids) if path],
            "pca": len(pca.components),
            "explained": min(float(pca.explained_variance.sum() / max(pca.total_variance, 1e-30)), 1.0),
        }

    try:
        return run_stage(stage, build, force=force, report=report, named=f"the vectors {stage.path.name}")
    except (BadDataError, WrongUseError):
        # Nothing of a file that is refused is of use later, and half of a catalogue's vectors can be gigabytes.
        shutil.rmtree(partial_path(stage), ignore_errors=True)
        raise


def name_for(file: Path, name: str | None = None) -> str:
    """What the vectors in a file are called: `name`, or the file's own without endings.

    Raises:
        WrongUseError: that is no name for vectors.
    """
    try:
        return external_name(re.sub(r"[^\w.+=-]+", "-", file.name.split(".")[0]) if name is None else name)
    except ValueError as error:
        where = str(file) if name is None else f"--name {name}"
        raise WrongUseError(str(error), where=where, hint="give them another one: --name NAME") from None


def _write(work: Path, item_ids: pl.Series, found: Iterator[Block], file: Path) -> int:
    """Put the vectors into the rows of their items; the number of those that no item has."""
    first = next(found, None)
    if first is None:
        raise BadDataError("there are no vectors in it", where=str(file))
    places = {item: row for row, item in enumerate(item_ids)}
    have = np.zeros(len(item_ids), dtype=bool)
    others, width = 0, first[1].shape[1]
    with open_rows(work, len(item_ids), width) as out:
        for names, vectors in itertools.chain([first], found):
            if vectors.shape[1] != width:
                raise BadDataError(f"item {names[0]} has a vector of another width than {width}", where=str(file))
            rows = np.array([places.get(name, -1) for name in names], dtype=np.int64)
            known = rows >= 0
            at = rows[known]
            twice = have[at]
            twice[np.setdiff1d(np.arange(len(at)), np.unique(at, return_index=True)[1])] = True
            if twice.any():
                raise BadDataError(f"item {item_ids[int(at[twice][0])]} has two vectors", where=str(file))
            have[at] = True
            others += int((~known).sum())
            out.write(at, vectors[known])
    missing = item_ids.filter(pl.Series(~have))
    if len(missing):
        raise BadDataError(
            f"{len(missing)} of {len(item_ids)} items have no vector, for example {missing[0]}",
            where=str(file),
            hint="every item of the workspace needs one; ids are those of your own files",
        )
    return others


def read_blocks(file: Path, ids: Path | None, settings: Settings, report: Reporter) -> Iterator[Block]:
    """Ids and vectors, (n,) text and (n, d) float32, in the order of the file, some rows at a time.

    Raises:
        WrongUseError, BadDataError: as `take_vectors`.
    """
    raw, ids = plain_file(file), _ids_of(file, ids)
    if _is_matrix(file):
        return _of_matrix(file, ids, settings, report)
    kind = table_kind(raw)
    if kind == "csv" and (count := _word2vec_count(raw)) is not None:
        return _of_word2vec(file, raw, count, report)
    readers = {"parquet": _of_parquet, "jsonl": _of_jsonl, "csv": _of_delimited}
    return readers[kind](file, settings, report)


def _is_matrix(file: Path) -> bool:
    return file.suffix.lower() in (".npy", ".safetensors")


def _ids_of(file: Path, ids: Path | None) -> Path | None:
    """Where the ids of a matrix stand: `ids`, or the file beside it.

    Raises:
        WrongUseError: `ids` are given for another file, which has its own.
    """
    if not _is_matrix(file):
        if ids is not None:
            hint = "others have their own ids"
            raise WrongUseError("--ids goes with a matrix, .npy or .safetensors", where=str(file), hint=hint)
        return None
    beside = file.with_name("ids.parquet")
    return beside if ids is None and beside.is_file() else ids


def _of_matrix(file: Path, ids: Path | None, settings: Settings, report: Reporter) -> Iterator[Block]:
    if ids is None or not ids.is_file():
        raise WrongUseError(
            "which item does a row belong to?",
            where=str(file),
            hint="--ids FILE: the item ids in the order of the rows, one a line, or a table with a column of them",
        )
    matrix = _read_matrix(file)
    names = _row_ids(ids, len(matrix), settings)
    if len(names) != len(matrix):
        raise BadDataError(f"{len(matrix)} vectors for {len(names)} ids in {ids.name}", where=str(file))
    with _rows_read(file, len(names), report) as task:
        for rows in blocks(*matrix.shape):
            yield names[rows], np.asarray(matrix[rows], dtype=np.float32)
            task.advance(rows.stop - rows.start)


def _row_ids(file: Path, rows: int, settings: Settings) -> pl.Series:
    """The ids in a table, or in a list of one a line without a header."""
    columns, filed = column_names(file), settings.data.item_column
    listed = len(columns) == 1 and table_kind(plain_file(file)) == "csv"
    if listed and items_key(filed if filed in columns else "item_id", columns) is None:
        names = _whole(read_table(file, columns).frame, columns[0], file)
        # Whether the first line is an id or what the column is called, the number of vectors says.
        return names if len(names) == rows else pl.concat([pl.Series(columns[0], columns), names])
    key = id_column(str(file), columns, filed)
    return _whole(read_table(file, [key]).frame, key, file)


def _rows_read(file: Path, rows: int, report: Reporter) -> Task:
    return report.task(f"reading {file.name}", rows, "items")


def _read_matrix(file: Path) -> np.ndarray:
    """(n, d) numbers, read from the disk as they are looked at."""
    if file.suffix.lower() == ".safetensors":
        return map_rows(file, _tensor_name(file))
    try:
        # Not numpy.load, which opens archives and pickles as well.
        matrix = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # the header passes Python's own tokenizer, which raises whatever it likes
        raise BadDataError(f"not a matrix of numpy: {error}", where=str(file)) from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or 0 in matrix.shape:
        found = f"numbers of type {matrix.dtype} and shape {matrix.shape}"
        raise BadDataError(f"{found}, where a row of numbers an item is expected", where=str(file))
    return matrix


def _tensor_name(file: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            names = sorted(opened.keys())
    except SafetensorError as error:
        raise BadDataError(f"not a safetensors file: {error}", where=str(file)) from error
    return _chosen(names, file, "tensor")


def _chosen(names: list[str], file: Path, what: str) -> str:
    """The one that holds the vectors: by its name, else the only one there is."""
    named = [name for wanted in COLUMNS for name in names if name.lower() == wanted]
    if named or len(names) == 1:
        return (named or names)[0]
    found = f"there are: {', '.join(names)}" if names else "there is none"
    raise WrongUseError(f"which {what} holds the vectors? {found}", where=str(file), hint=f"call it {COLUMNS[0]}")


def _of_parquet(file: Path, settings: Settings, report: Reporter) -> Iterator[Block]:
    key = id_column(str(file), column_names(file), settings.data.item_column)
    names = _whole(read_table(file, [key]).frame, key, file)
    with parquet_faults(str(file)):
        schema = pl.read_parquet_schema(file)
    lists = [name for name, kind in schema.items() if _numbers(kind)]
    numeric = [name for name, kind in schema.items() if kind.is_numeric() and name != key]
    wide = [] if lists else numbered(numeric)
    held = wide or [_chosen(lists, file, "column")]
    with _rows_read(file, len(names), report) as task:
        for start in range(0, len(names), ROWS_AT_ONCE):
            with parquet_faults(str(file)):
                rows = pl.scan_parquet(file).select(held).slice(start, ROWS_AT_ONCE).collect()
            part = _joined(rows) if wide else rows[held[0]]
            yield names[start : start + len(part)], _stacked(part, names[start : start + len(part)], file)
            task.advance(len(part))


def _numbers(kind: pl.DataType) -> bool:
    """Whether values of this type are lists of numbers."""
    return isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()


def numbered(names: list[str]) -> list[str]:
    """The columns of vectors with a column a number, d0, d1, ..., in order: one name, numbered from 0 or 1.

    None where there are no two such columns, or several names are numbered so.
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if parts := re.fullmatch(r"(.*?)([0-9]{1,6})", name):
            found.setdefault(parts[1], {})[int(parts[2])] = name
    whole = [
        [of[number] for number in sorted(of)]
        for of in found.values()
        if len(of) > 1 and min(of) in (0, 1) and max(of) - min(of) == len(of) - 1
    ]
    return whole[0] if len(whole) == 1 else []


def _joined(frame: pl.DataFrame) -> pl.Series:
    """The columns of numbers, or of texts of them, as one of lists; null where one is none."""
    return frame.select(pl.concat_list(pl.all().cast(pl.Float32, strict=False))).to_series()


def _of_jsonl(file: Path, settings: Settings, report: Reporter) -> Iterator[Block]:
    raw = plain_file(file)
    columns = json_keys(raw, Reporter(), RECORDS_LOOKED_AT)
    key = id_column(str(file), columns, settings.data.item_column)
    column = _chosen([name for name in columns if name != key], file, "column")
    records = json_records(raw, parse_object, report)
    while part := list(itertools.islice(records, RECORDS_AT_ONCE)):
        found = [_of_record(record, key, column, f"{file}, line {line}") for line, record in part]
        ids = pl.Series([name for name, _ in found], dtype=pl.String)
        # What is no number becomes null, and is named below.
        vectors = pl.Series([vector for _, vector in found], dtype=pl.List(pl.Float64), strict=False)
        yield ids, _stacked(vectors, ids, file)


def _of_record(record: Record | Reject, key: str, column: str, where: str) -> tuple[str, Any]:
    """The id and the vector of a line."""
    if isinstance(record, Reject):
        raise BadDataError(record.reason, where=where)
    try:
        name = as_text(record.get(key)).strip()
    except ValueError as error:
        raise BadDataError(f"unreadable id: {error}", where=f"{where}, field {key}") from None
    if fault := text_fault(name):
        raise BadDataError(fault, where=where)
    if not name:
        raise _without_id(where, key)
    vector = record.get(column)
    return name, _split(pl.Series([vector]))[0] if isinstance(vector, str) else vector


def _of_delimited(file: Path, settings: Settings, report: Reporter) -> Iterator[Block]:
    columns = column_names(file, sample=True)
    key = id_column(str(file), columns, settings.data.item_column)
    others = [name for name in columns if name != key]
    wide = [] if {name.lower() for name in others} & {*COLUMNS} else numbered(others)
    held = wide or [_chosen(others, file, "column")]
    for batch in scan_table(file, [key, *held], report=report):
        if batch.rejects:
            raise BadDataError(batch.rejects[0].reason, where=f"{file}, line {batch.rejects[0].line}")
        for start in range(0, len(batch.frame), ROWS_AT_ONCE):
            frame = batch.frame[start : start + ROWS_AT_ONCE]
            names = _whole(frame, key, file)
            yield names, _stacked(_joined(frame.select(wide)) if wide else _split(frame[held[0]]), names, file)


def _word2vec_count(file: RawFile) -> int | None:
    """How many vectors the first line of word2vec text announces; None where it is no such line."""
    with file.open() as stream:
        found = re.fullmatch(rb"([0-9]{1,12}) [0-9]{1,9}\s*", stream.readline(64).removeprefix(BOM))
    return int(found[1]) if found else None


def _of_word2vec(file: Path, raw: RawFile, count: int, report: Reporter) -> Iterator[Block]:
    """A line with the number of vectors and their width, then an id and its numbers a line, as gensim writes it.

    Beside an export lies `ids.parquet`, which says whose words they are where an id has blanks.
    """
    ids_file, read = file.with_name("ids.parquet"), 0
    words = {}
    if ids_file.is_file() and {"word", "item_id"} <= set(column_names(ids_file)):
        words = dict(read_parquet(ids_file, ["word", "item_id"]).iter_rows())
    for chunk in line_chunks(raw, report, WORD2VEC_BYTES):
        try:
            lines = chunk.data.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            line = chunk.first + chunk.data[: error.start].count(b"\n")
            raise BadDataError("not UTF-8 text", where=f"{file}, line {line}") from None
        pairs = [line.strip().partition(" ") for line in lines[int(chunk.first == 1) :] if line.strip()]
        names = pl.Series([words.get(word, word) for word, _, _ in pairs], dtype=pl.String)
        if pairs:
            yield names, _stacked(_split(pl.Series([numbers for _, _, numbers in pairs])), names, file)
        read += len(pairs)
    if read != count:
        raise BadDataError(f"{read} vectors, where its first line says {count}", where=str(file))


def _split(texts: pl.Series) -> pl.Series:
    """The numbers in a text: "[0.1, 0.2]", "0.1, 0.2" and "0.1 0.2" alike; null where one is none."""
    parts = texts.str.strip_chars(" \t\r\n[]()").str.replace_all(r"[,\s]+", " ").str.split(" ")
    return parts.cast(pl.List(pl.Float32), strict=False)


def _whole(frame: pl.DataFrame, key: str, file: Path) -> pl.Series:
    """The column of ids, each of which must be there."""
    absent = frame.filter(pl.col(key).is_null())
    if len(absent):
        raise _without_id(f"{file}, line {absent[LINE][0]}", key)
    return frame[key]


def _without_id(where: str, key: str) -> BadDataError:
    return BadDataError("a vector without an id", where=f"{where}, field {key}")


def _stacked(lists: pl.Series, names: pl.Series, file: Path) -> np.ndarray:
    """(n, d) float32 of a column of lists, which must be alike in length and hold nothing but numbers."""
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    lists = lists.cast(pl.List(pl.Float32))
    lengths = lists.list.len()
    common = int(lengths.fill_null(0).mode().max())  # type: ignore[arg-type]
    for odd, what in (
        (lengths.is_null() | (lengths == 0), "no vector"),
        (lengths != common, f"a vector of another width than {common}"),
        (lists.list.eval(pl.element().is_null()).list.any(), "a vector with something in it that is no number"),
    ):
        if odd.any():
            raise BadDataError(f"item {names.filter(odd.fill_null(True))[0]} has {what}", where=str(file))
    return lists.list.explode().to_numpy().reshape(len(lists), -1)
