"""MovieLens: 100K, 1M, latest-small and 32M, as GroupLens ships them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from llmemb_cli.assets.fetch import fetch
from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.chunks import LINE
from llmemb_cli.datasets.readers.delimited import Layout, scan_delimited
from llmemb_cli.datasets.readers.recbole import read_tables
from llmemb_cli.datasets.readers.sources import find_files
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.errors import MissingError, WrongUseError
from llmemb_cli.progress import Reporter

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
ATTRIBUTES = ["title", "year", "genres"]
# "Title (1995)", "Title (1995) (TV)", "Title (1975-1979)".
_YEAR = r"\s*\((\d{4})(?:[-\u2013][^)]*)?\)\s*(?:\([A-Z]{1,3}\)\s*)?$"
_RATING = ["user_id", "item_id", "rating", "timestamp"]


@dataclass(frozen=True)
class _Files:
    """How an edition's two files are written."""

    ratings: str
    movies: str
    rating_layout: Layout
    movie_layout: Layout


_U_ITEM = ["item_id", "title", "released", "video", "url", *GENRES]
EDITIONS = {
    "ml-100k": _Files(
        "u.data",
        "u.item",
        Layout(_RATING, "\t", 0, quoted=False),
        Layout(_U_ITEM, "|", 0, quoted=False, encoding="latin-1"),
    ),
    "ml-1m": _Files(
        "ratings.dat",
        "movies.dat",
        Layout(_RATING, "::", 0, quoted=False),
        Layout(["item_id", "title", "genres"], "::", 0, quoted=False, encoding="latin-1"),
    ),
} | dict.fromkeys(
    ("ml-latest-small", "ml-32m"),
    _Files("ratings.csv", "movies.csv", Layout(_RATING, ","), Layout(["item_id", "title", "genres"], ",")),
)


def read_movielens(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """From the preset's own source, or from `--source`: GroupLens's zip file, its folder, or RecBole's folder.

    Raises:
        WrongUseError: `--source` holds none of these.
        MissingError: no source can be reached.
    """
    source = root / settings.source if settings.source else _fetched(preset, report)
    if _holds_tables(source):
        edition = preset.edition if not settings.source else "RecBole's tables"
        return read_tables(source, preset, edition, report)
    files = EDITIONS[preset.name]
    expected = f"{preset.name}.zip, or its folder with {files.ratings} and {files.movies}"
    roles = {"ratings": re.escape(files.ratings), "films": re.escape(files.movies)}
    found = find_files(source, roles, expected=expected)
    tally = Tally()
    return RawData(
        log=scan_delimited(found["ratings"], _RATING, files.rating_layout, report),
        log_name=files.ratings,
        items=_films(found["films"], files.movie_layout, tally, report),
        items_name=files.movies,
        attributes=ATTRIBUTES,
        tally=tally,
        files=sorted({file.path for file in found.values()}),
        edition=f"{preset.name}, GroupLens",
        instruction=preset.instruction,
    )


def _fetched(preset: DatasetPreset, report: Reporter) -> Path:
    """The preset's zip file in the cache, or the folder there with RecBole's tables."""
    try:
        paths = [fetch(asset, report) for asset in preset.assets]
    except MissingError as error:
        if not preset.otherwise:
            raise
        report.note(f"{error.message}; trying GroupLens's own")
        try:
            paths = [fetch(asset, report) for asset in preset.otherwise]
        except MissingError as other:
            raise MissingError(f"{error.message}; {other.message}", where=other.where, hint=other.hint) from error
    return paths[0].parent if paths[0].suffix == ".inter" else paths[0]


def _holds_tables(source: Path) -> bool:
    try:
        return source.is_dir() and any(source.glob("*.inter"))
    except OSError:
        return False  # what keeps us out is told when the files are looked for


def _films(file: RawFile, layout: Layout, tally: Tally, report: Reporter) -> pl.DataFrame:
    frames = []
    for batch in scan_delimited(file, layout.columns, layout, report):
        tally.rows_read[file.name] += batch.rows_read
        tally.add(batch.rejects)
        frames.append(_genre_flags(batch.frame) if "Action" in layout.columns else batch.frame)
    if not frames:
        raise WrongUseError("the file is empty", where=file.where)
    return pl.concat(frames).select(
        "item_id",
        pl.col("title").str.replace(_YEAR, ""),
        pl.col("title").str.extract(_YEAR).alias("year"),
        pl.col("genres").str.replace_all("|", ", ", literal=True).replace("(no genres listed)", None),
        LINE,
    )


def _genre_flags(films: pl.DataFrame) -> pl.DataFrame:
    """The nineteen 0/1 columns of u.item as `genres`, in the form of the later editions."""
    names = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    return films.select(
        "item_id", "title", pl.concat_str(names, separator="|", ignore_nulls=True).alias("genres"), LINE
    )
