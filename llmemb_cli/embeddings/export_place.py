"""Where an export is written: a directory that may hold a former export, and files of others beside it."""

from __future__ import annotations

from pathlib import Path

from llmemb_cli.errors import WrongUseError
from llmemb_cli.workspace.stage import MANIFEST, Stage, read_manifest, readable_manifest, stage_state


def check_target(stage: Stage, source: str, force: bool) -> None:
    """Refuse to write where something else lies than an earlier export of the same.

    Raises:
        WrongUseError: no export is there, or, without `force`, one of another source or format, or other files too.
    """
    target = stage.path
    bring_back(target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    there = readable_manifest(target) if target.is_dir() else None
    if there is None or there.get("stage") != "export":
        raise WrongUseError("holds files that are no export", where=str(target), hint="--output with a new directory")
    if force or stage_state(stage).state == "up-to-date":
        return
    had = (there["summary"]["source"], there["summary"]["format"])
    if had != (source, stage.settings["format"]):
        raise WrongUseError(
            f"holds an export of {had[0]} as {had[1]}",
            where=str(target),
            hint="--output with a new directory, or --force to write over its files",
        )
    if others := _others(target):
        raise WrongUseError(
            f"holds more than the export, for example {others[0].name}",
            where=str(target),
            hint="--output with a new directory, or --force to write over the export's own files and keep the rest",
        )


def _others(target: Path) -> list[Path]:
    """What lies in an export's directory that the export did not put there."""
    own = {*(read_manifest(target) or {}).get("outputs", {}), MANIFEST}
    return sorted(path for path in target.iterdir() if path.name not in own)


def _aside(target: Path) -> Path:
    return target.parent / f".{target.name}.kept"


def set_aside(work: Path, target: Path) -> None:
    """Move what is not the export's out of `target`, which is about to be replaced by `work`.

    Raises:
        WrongUseError: a file of the new export has the name of one of them.
    """
    others = _others(target) if target.is_dir() else []
    taken = [path.name for path in others if (work / path.name).exists()]
    if taken:
        raise WrongUseError(
            f"{taken[0]} is there and no part of the former export",
            where=str(target),
            hint="--output with a new directory",
        )
    for path in others:
        _aside(target).mkdir(exist_ok=True)
        path.replace(_aside(target) / path.name)


def bring_back(target: Path) -> None:
    """Put back what `set_aside` moved, also in a call that was ended before it could."""
    kept = _aside(target)
    if not kept.is_dir() or not target.is_dir():
        return
    for path in kept.iterdir():
        path.replace(target / path.name)
    kept.rmdir()
