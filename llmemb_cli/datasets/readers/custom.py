"""The user's own files."""

from __future__ import annotations

from pathlib import Path

from llmemb_cli.config.data import DataSettings
from llmemb_cli.datasets.columns import LEAKING, guess_column, resolve_custom
from llmemb_cli.datasets.presets import DatasetPreset
from llmemb_cli.datasets.raw import RawData
from llmemb_cli.datasets.readers.tabular import LINE, column_names, read_table
from llmemb_cli.progress import Reporter


def read_custom(settings: DataSettings, root: Path, preset: DatasetPreset, report: Reporter) -> RawData:
    """Read `--interactions` and `--items`.

    Raises:
        WrongUseError, BadDataError: as `read_table`.
    """
    log_file = root / settings.interactions
    values = settings.model_dump() | {"interactions": str(log_file)}
    if settings.items:
        values["items"] = str(root / settings.items)
    chosen = DataSettings.model_validate(resolve_custom(values, ask=None))
    roles = {
        chosen.user_column: "user_id",
        chosen.item_column: "item_id",
        chosen.time_column: "timestamp",
        chosen.rating_column: "rating",
    }
    roles.pop("", None)
    report.note(f"reading {log_file.name}")
    log = read_table(log_file, list(roles))
    data = RawData(
        interactions=log.frame.rename(roles),
        items=None,
        attributes=[],
        rejects=log.rejects,
        rows_read={log_file.name: log.rows_read},
        files=[log_file],
        edition=settings.edition or preset.edition,
        instruction=preset.instruction,
        log_name=log_file.name,
        items_name="",
    )
    if settings.items:
        _read_items(Path(chosen.items), chosen, data, report)
    return data


def _read_items(path: Path, chosen: DataSettings, data: RawData, report: Reporter) -> None:
    report.note(f"reading {path.name}")
    names = column_names(path)
    guessed = guess_column("item_column", names)[0]
    key = chosen.item_column if chosen.item_column in names or guessed is None else guessed
    title = chosen.title_column
    others = [name for name in names if name not in (key, title)]
    table = read_table(path, [key, *([title] if title else []), *others])
    # The title is always the first attribute and always called so.
    data.items = table.frame.rename({key: "item_id"} | ({title: "title"} if title else {})).select(
        "item_id", *(["title"] if title else []), *[name for name in others if name != "title"], LINE
    )
    wanted = ["title" if name == title else name for name in chosen.attributes]
    usable = [name for name in data.items.columns if name not in ("item_id", LINE) and name.lower() not in LEAKING]
    data.attributes = wanted or usable
    data.rejects += table.rejects
    data.rows_read[path.name] = table.rows_read
    data.files.append(path)
    data.items_name = path.name
