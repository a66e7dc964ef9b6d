"""RecBole's atomic files: tab-separated `.inter` and `.item` tables whose headers carry types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.columns import guess_column, named_items
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.chunks import LINE, Batch
from llmemb_cli.datasets.readers.sources import find_files
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.datasets.readers.tabular import column_names, read_table, scan_table
from llmemb_cli.errors import WrongUseError
from llmemb_cli.progress import Reporter

# What RecBole's own data sets call things -> what the attribute is called here. The first that is there has the name.
NAMES = {
    **{"movie_title": "title", "item_name": "title", "name": "title", "release_year": "year"},
    **{"class": "genres", "genre": "genres", "sales_type": "type"},
    # Told apart from other attributes by these names: they leak.
    **{"item_stars": "stars", "item_review_count": "review_count"},
}


def read_recbole(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """A folder (or archive) with one `.inter` and one `.item` file.

    Raises:
        WrongUseError: no `--source`, or the files are not there.
    """
    if not settings.source:
        raise WrongUseError("which folder?", hint="--source FOLDER with the .inter and .item files")
    return read_tables(root / settings.source, preset, settings.edition or preset.edition, report)


def read_tables(source: Path, preset: DatasetPreset, edition: str, report: Reporter) -> RawData:
    """Read the tables in `source`."""
    found = find_files(
        source, {"interactions": r".*\.inter", "items": r".*\.item"}, expected="a folder with .inter and .item files"
    )
    log, catalogue = found["interactions"], found["items"]
    roles = _roles(log)
    tally = Tally()
    items, attributes = _items(catalogue, roles["item_id"], tally, report)
    batches = scan_table(log, list(roles.values()), report=report)
    return RawData(
        log=_renamed(batches, {column: role for role, column in roles.items()}),
        log_name=log.name,
        items=items,
        items_name=catalogue.name,
        attributes=attributes,
        tally=tally,
        files=sorted({log.path, catalogue.path}),
        edition=edition,
        instruction=preset.instruction,
    )


def _roles(log: RawFile) -> dict[str, str]:
    columns = column_names(log)
    roles = {}
    for role, kind in (
        ("user_id", "user_column"),
        ("item_id", "item_column"),
        ("timestamp", "time_column"),
        ("rating", "rating_column"),
    ):
        guess, _ = guess_column(kind, columns)
        if guess is not None:
            roles[role] = guess
    for role in ("user_id", "item_id"):
        if role not in roles:
            raise WrongUseError(
                f"no {role} among the columns {', '.join(columns)}",
                where=log.where,
                hint="read it with `llmemb init custom --interactions FILE` and name the columns",
            )
    return roles


def _items(file: RawFile, key: str, tally: Tally, report: Reporter) -> tuple[pl.DataFrame, list[str]]:
    table = read_table(file, report=report)
    tally.rows_read[file.name] += table.rows_read
    tally.add(table.rejects)
    names: dict[str, str] = {}
    for column in table.frame.columns:
        name = NAMES.get(column, column)
        names[column] = column if name in names.values() or (name != column and name in table.frame.columns) else name
    frame = table.frame.rename(names)
    if key not in frame.columns:
        raise WrongUseError(
            f"no column {key}; there are: {', '.join(table.frame.columns[:-1])}",
            where=file.where,
            hint="the item id must have the same column name in both files",
        )
    if "genres" in frame.columns:
        # RecBole separates the values of a sequence by blanks; a comma reads better and no genre holds a blank.
        frame = frame.with_columns(pl.col("genres").str.replace_all(" ", ", ", literal=True))
    if "year" in frame.columns:
        # Its ml-100k has a year "unkonwn" and one "V", of a film "(1995) (V)".
        frame = frame.with_columns(pl.when(pl.col("year").str.contains(r"^\d{4}$")).then(pl.col("year")))
    title = "title" if "title" in frame.columns and key != "title" else None
    frame, _ = named_items(frame, key, title, report)
    return frame, [name for name in frame.columns if name not in ("item_id", LINE)]


def _renamed(batches: Iterator[Batch], roles: dict[str, str]) -> Iterator[Batch]:
    for batch in batches:
        batch.frame = batch.frame.rename(roles)
        yield batch
