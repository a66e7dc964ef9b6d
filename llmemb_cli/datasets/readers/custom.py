"""The user's own files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.columns import items_key, named_items, resolve_custom
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData, Tally
from llmemb_cli.datasets.readers.chunks import LINE, Batch
from llmemb_cli.datasets.readers.sources import plain_file
from llmemb_cli.datasets.readers.streams import RawFile
from llmemb_cli.datasets.readers.tabular import column_names, read_table, scan_table
from llmemb_cli.progress import Reporter


def read_custom(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """Read `--interactions` and `--items`.

    Raises:
        WrongUseError, BadDataError: as `scan_table`.
    """
    log_file = plain_file(root / settings.interactions)
    catalogue = plain_file(root / settings.items) if settings.items else None
    if catalogue is not None and catalogue.name == log_file.name:
        # Rows and rejects are counted by file name.
        log_file, catalogue = _with_folder(log_file), _with_folder(catalogue)
    values = settings.model_dump() | {"interactions": str(log_file.path)}
    if catalogue is not None:
        values["items"] = str(catalogue.path)
    chosen = DataSettings.model_validate(resolve_custom(values, ask=None))
    roles = {
        chosen.user_column: "user_id",
        chosen.item_column: "item_id",
        chosen.time_column: "timestamp",
        chosen.rating_column: "rating",
    }
    roles.pop("", None)
    batches = scan_table(log_file, list(roles), encoding=settings.encoding, report=report)
    data = RawData(
        log=_renamed(batches, roles),
        log_name=log_file.name,
        items=None,
        items_name="",
        attributes=[],
        tally=Tally(),
        files=[log_file.path],
        edition=settings.edition or preset.edition,
        instruction=preset.instruction,
    )
    if catalogue is not None:
        _read_items(catalogue, chosen, data, report)
    return data


def _with_folder(file: RawFile) -> RawFile:
    return replace(file, name=str(Path(file.path.parent.name, file.name)))


def _renamed(batches: Iterator[Batch], roles: dict[str, str]) -> Iterator[Batch]:
    for batch in batches:
        batch.frame = batch.frame.rename(roles)
        yield batch


def _read_items(file: RawFile, chosen: DataSettings, data: RawData, report: Reporter) -> None:
    names = column_names(file, encoding=chosen.encoding)
    key = items_key(chosen.item_column, names)
    assert key is not None  # resolve_custom has looked
    title = chosen.title_column
    # A title that is not there is told by name.
    wanted = dict.fromkeys([key, *([title] if title else []), *names])
    table = read_table(file, list(wanted), encoding=chosen.encoding, report=report)
    # The title is always the first attribute and always called so.
    data.items, data.renamed = named_items(table.frame, key, title, report)
    asked = ["title" if name == title else data.renamed.get(name, name) for name in chosen.attributes]
    data.attributes = asked or [name for name in data.items.columns if name not in ("item_id", LINE)]
    data.tally.rows_read[file.name] += table.rows_read
    data.tally.add(table.rejects)
    data.files.append(file.path)
    data.items_name = file.name
