"""Small data sets as files and archives, and what `llmemb init` makes of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from llmemb_cli.config.settings import load_settings
from llmemb_cli.datasets.create import create_workspace
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.template import item_parts, render
from llmemb_cli.workspace.locate import Workspace

Files = Mapping[str, bytes]
Record = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A workspace's data, read back."""

    workspace: Workspace
    items: pl.DataFrame
    log: pl.DataFrame
    stats: dict[str, Any]
    rejects: list[Record]

    def rows(self) -> list[tuple[str, str, int]]:
        """User, item and time of every kept interaction."""
        return self.log.select("user_id", "item_id", "timestamp").rows()

    def prompts(self) -> dict[str, str]:
        """Item id -> its prompt, as `llmemb prompt` shows it."""
        settings = load_settings(self.workspace.settings_file).prompt
        texts = item_parts(self.items, self.stats["attributes"], settings)
        instruction = settings.instruction or self.stats["instruction"]
        return {
            item: render(instruction, parts, settings.separator)
            for item, parts in zip(self.items["item_id"], texts, strict=True)
        }

    def accounts_for_every_row(self) -> bool:
        """Whether rows read = rows used + rows rejected, of every file, with a hundred rejects of a reason kept."""
        log_name, *others = [*self.stats["rows_read"]][::-1]
        used = {log_name: len(self.log) + sum(self.stats["left_out"].values())}
        if others:
            used[others[0]] = len(self.items) + self.stats["items_without_interactions"]
        rejected = self.stats["rejected_by_file"]
        kept: dict[tuple[str, str], int] = {}
        for reject in self.rejects:
            kept[reject["file"], reject["reason"]] = kept.get((reject["file"], reject["reason"]), 0) + 1
        reasons = self.stats["rejected_by_reason"]
        return (
            all(rows == used[name] + rejected[name] for name, rows in self.stats["rows_read"].items())
            and self.stats["rejected"] == sum(rejected.values()) == sum(reasons.values())
            and max(kept.values(), default=0) <= 100
            and {reason for _, reason in kept} == set(reasons)
        )


def prepare(root: Path, dataset: str, *, source: Path | None = None, **data: Any) -> Prepared:
    """`llmemb init DATASET --source SOURCE --force --filter none` with the settings `data`, read back."""
    overrides = {"data.dataset": dataset, "data.allow_small": True, "data.filter": "none"}
    overrides |= {"data.source": str(source)} if source else {}
    overrides |= {f"data.{key}": value for key, value in data.items()}
    workspace, _ = create_workspace(root, overrides, Reporter())
    return Prepared(
        workspace,
        pl.read_parquet(workspace.data / "items.parquet"),
        pl.read_parquet(workspace.data / "interactions.parquet"),
        json.loads((workspace.data / "stats.json").read_text()),
        [json.loads(line) for line in (workspace.data / "rejected.jsonl").read_text().split("\n")[:-1]],
    )


def json_lines(records: Sequence[Record]) -> bytes:
    """Records as JSON Lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def python_lines(records: Sequence[Record]) -> bytes:
    """Records as Python dictionaries, one a line, as Amazon's metadata of 2014 is written."""
    return "".join(f"{record!r}\n" for record in records).encode()


def write_files(folder: Path, files: Files) -> Path:
    """The files in `folder`, which is made."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar_of(files: Files, packed: str = "") -> bytes:
    """A tar archive; `packed`: gz, xz, bz2 or nothing."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=f"w:{packed}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def zip_of(files: Files) -> bytes:
    """A zip archive."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def gz_files(files: Files) -> dict[str, bytes]:
    """Every file gzipped, with `.gz` added to its name."""
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
