"""MovieLens."""

from __future__ import annotations

import zipfile
from pathlib import Path

from llmemb_cli.assets.fetch import fetch
from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData
from llmemb_cli.datasets.readers.tabular import LINE, read_table
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.progress import Reporter

GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
MAX_MEMBER_BYTES = 64 << 20


def read_ml_100k(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """MovieLens 100K: from the preset's own source, or from `--source`: ml-100k.zip, its folder, or RecBole's folder.

    Raises:
        WrongUseError: `--source` holds neither layout.
        MissingError: no source can be reached.
    """
    if not settings.source:
        log, items = (fetch(asset, report) for asset in preset.assets)
        return _recbole(log, items, preset, preset.edition)
    source = root / settings.source
    log, items = source / "ml-100k.inter", source / "ml-100k.item"
    if log.is_file() and items.is_file():
        return _recbole(log, items, preset, "RecBole tables")
    return _grouplens(source, preset)


def _recbole(log: Path, items: Path, preset: DatasetPreset, edition: str) -> RawData:
    import polars as pl

    events = read_table(log, ["user_id", "item_id", "rating", "timestamp"])
    films = read_table(items, ["item_id", "movie_title", "release_year", "class"])
    named = films.frame.rename({"movie_title": "title", "release_year": "year", "class": "genres"})
    # RecBole separates genres by blanks; a comma reads better in a prompt and no genre contains a blank.
    named = named.with_columns(pl.col("genres").str.replace_all(" ", ", ", literal=True))
    return RawData(
        interactions=events.frame,
        items=named.select("item_id", "title", "year", "genres", LINE),
        attributes=["title", "year", "genres"],
        rejects=events.rejects + films.rejects,
        rows_read={log.name: events.rows_read, items.name: films.rows_read},
        files=[log, items],
        edition=edition,
        instruction=preset.instruction,
        log_name=log.name,
        items_name=items.name,
    )


def _grouplens(source: Path, preset: DatasetPreset) -> RawData:
    import polars as pl

    events = [line.split("\t") for line in _member(source, "u.data").splitlines()]
    films = [line.split("|") for line in _member(source, "u.item").splitlines()]
    for name, rows, width in (("u.data", events, 4), ("u.item", films, 24)):
        for number, row in enumerate(rows, start=1):
            if len(row) != width:
                raise BadDataError(f"{len(row)} fields instead of {width}", where=f"{source}, {name}, line {number}")
    return RawData(
        interactions=pl.DataFrame(events, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
        .with_row_index(LINE, offset=1)
        .cast({LINE: pl.Int64}),
        items=pl.DataFrame(
            [(number, *_film(row)) for number, row in enumerate(films, start=1)],
            schema={LINE: pl.Int64} | dict.fromkeys(("item_id", "title", "year", "genres"), pl.String),
            orient="row",
        ).select("item_id", "title", "year", "genres", LINE),
        attributes=["title", "year", "genres"],
        rejects=[],
        rows_read={"u.data": len(events), "u.item": len(films)},
        files=[source] if source.is_file() else [source / "u.data", source / "u.item"],
        edition="1998, GroupLens",
        instruction=preset.instruction,
        log_name="u.data",
        items_name="u.item",
    )


def _film(row: list[str]) -> tuple[str, str | None, str | None, str | None]:
    """Item id, title without its year, year, genres."""
    title, year = row[1], row[2][-4:] or None
    if year and title.endswith(f"({year})"):
        title = title.removesuffix(f"({year})").strip()
    genres = ", ".join(genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1")
    return row[0], title or None, year, genres or None


def _member(source: Path, name: str) -> str:
    """The text of `u.data` or `u.item` in GroupLens's zip file or folder (Latin-1)."""
    if source.is_dir():
        found = next((path for path in (source / name, source / "ml-100k" / name) if path.is_file()), None)
        if found is None:
            raise WrongUseError(f"no {name} in this folder", where=str(source), hint="pass the folder of ml-100k.zip")
        return found.read_text(encoding="latin-1")
    if not source.is_file():
        raise WrongUseError("no such file or folder", where=str(source))
    try:
        with zipfile.ZipFile(source) as archive:
            info = next((i for i in archive.infolist() if i.filename.rsplit("/", 1)[-1] == name), None)
            if info is None or info.file_size > MAX_MEMBER_BYTES:
                raise BadDataError(f"no {name} of a sane size in this archive", where=str(source))
            return archive.read(info).decode("latin-1")
    except zipfile.BadZipFile as error:
        raise BadDataError(f"not a zip file, or damaged: {error}", where=str(source)) from error
