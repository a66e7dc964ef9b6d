"""Sequence files of SASRec-style repositories: a line is a user and their items in order of time.

Both forms are read alike: `user item item item ...` (one line a user) and `user item` (one line an interaction).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.columns import guess_column, items_key, named_items
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.chunks import LINE, MAX_LINE, Batch, Chunk, Reject, line_chunks, printable
from llmemb_cli.datasets.readers.delimited import Layout, scan_delimited
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.datasets.readers.tabular import column_names, read_table, table_kind
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter


def read_sequences(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """`--source` with the sequences and `--items` with the items' texts.

    The text file is a table with a header, or lines `item<TAB>text` without one.

    Raises:
        WrongUseError: no `--source`.
    """
    if not settings.source:
        raise WrongUseError("which file?", hint="--source FILE with lines `user item item ...`")
    file = plain_file(root / settings.source)
    tally = Tally()
    items, attributes, files, name = None, list[str](), [file.path], ""
    if settings.items:
        catalogue = plain_file(root / settings.items)
        items, attributes = _texts(catalogue, settings, tally, report)
        files.append(catalogue.path)
        name = catalogue.name
    return RawData(
        log=_interactions(file, report),
        log_name=file.name,
        items=items,
        items_name=name,
        attributes=settings.attributes or attributes,
        tally=tally,
        files=files,
        edition=settings.edition or preset.edition,
        instruction=preset.instruction,
    )


def _interactions(file: RawFile, report: Reporter) -> Iterator[Batch]:
    """One row an interaction; `timestamp` is the position in the user's sequence."""
    lengths: Counter[str] = Counter()
    for chunk in line_chunks(file, report):
        yield _batch(chunk, file.name, lengths)


def _batch(chunk: Chunk, name: str, lengths: Counter[str]) -> Batch:
    users: list[str] = []
    items: list[str] = []
    places: list[str] = []
    lines: list[int] = []
    rejects: list[Reject] = []
    for line, raw in enumerate(chunk.data.split(b"\n"), start=chunk.first):
        if not raw.strip():
            continue
        try:
            fields = raw.decode("utf-8").split()
        except UnicodeDecodeError:
            rejects.append(Reject(name, line, "unreadable line: not UTF-8", printable(raw)))
            continue
        if chunk.too_long or len(fields) < 2 or "\x00" in "".join(fields):
            rejects.append(Reject(name, line, "unreadable line: not a user and items", printable(raw)))
            continue
        user, *sequence = fields
        start = lengths[user]
        lengths[user] += len(sequence)
        users += [user] * len(sequence)
        items += sequence
        places += map(str, range(start, start + len(sequence)))
        lines += [line] * len(sequence)
    frame = pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": places, LINE: lines},
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.String, LINE: pl.Int64},
    )
    return Batch(frame, len(frame) + len(rejects), rejects)


def _texts(file: RawFile, settings: DataSettings, tally: Tally, report: Reporter) -> tuple[pl.DataFrame, list[str]]:
    """The items and the names of their attributes."""
    columns = _header(file, settings)
    key = settings.item_column or items_key("", columns)
    if key is None and _is_tabbed(file):
        layout = Layout(["item_id", "title"], "\t", 0, quoted=False, encoding=settings.encoding)
        batches = list(scan_delimited(file, layout.columns, layout, report))
        tally.rows_read[file.name] = sum(batch.rows_read for batch in batches)
        for batch in batches:
            tally.add(batch.rejects)
        return pl.concat([batch.frame for batch in batches]), ["title"]
    if key is None or key not in columns:
        raise WrongUseError(
            f"which column is the item? there are: {', '.join(columns)}", where=file.where, hint="--item-column NAME"
        )
    title = settings.title_column or guess_column("title_column", [name for name in columns if name != key])[0]
    wanted = dict.fromkeys([key, *([title] if title else []), *columns])
    table = read_table(file, list(wanted), encoding=settings.encoding, report=report)
    tally.rows_read[file.name] = table.rows_read
    tally.add(table.rejects)
    frame, _ = named_items(table.frame, key, title, report)
    return frame, [name for name in frame.columns if name not in ("item_id", LINE)]


def _header(file: RawFile, settings: DataSettings) -> list[str]:
    """The columns of the text file; none where its first line is no header, but an item already."""
    try:
        return column_names(file, encoding=settings.encoding)
    except BadDataError:
        if settings.item_column or not _is_tabbed(file):
            raise
        return []


def _is_tabbed(file: RawFile) -> bool:
    if table_kind(file) != "csv":
        return False
    with file.open() as stream:
        return b"\t" in stream.readline(MAX_LINE)
