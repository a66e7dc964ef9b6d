"""A new workspace: its directory, its `llmemb.toml`, its data. Nothing is left behind when that fails."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llmemb_cli.config.data import DataSettings, check_rules
from llmemb_cli.config.settings import Settings, load_settings, make_settings, write_settings
from llmemb_cli.datasets.prepare import prepare
from llmemb_cli.datasets.presets import DatasetPreset, find_preset
from llmemb_cli.errors import InterruptedRunError, LlmembError, WrongUseError
from llmemb_cli.interrupt import terminate_as_interrupt
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import SETTINGS_FILE, Workspace, is_workspace
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.make import StageResult

# Settings that say where the data is; each preset uses some of them.
WHERE = {
    *("source", "edition", "interactions", "items", "encoding"),
    *("user_column", "item_column", "time_column", "rating_column", "title_column", "time_format"),
}

# What a call has in the directory before the data are whole: a directory with nothing else is an unfinished one.
LOCK = ".llmemb.lock"
UNFINISHED = {SETTINGS_FILE, ".data.partial", LOCK, f"{LOCK}.json"}


def create_workspace(
    root: Path, overrides: dict[str, Any], report: Reporter, written: Collection[str] = ()
) -> tuple[Workspace, StageResult]:
    """Make a workspace in `root` with the settings `overrides`, and its data; the same call again goes on.

    Args:
        root: its directory.
        overrides: settings ("data.filter") that differ from their defaults.
        report: shows progress.
        written: settings that stand in `llmemb.toml` even at their default.

    Raises:
        WrongUseError: `root` holds a workspace with other data settings, or something else; settings that the data
            set does not use or that contradict each other.
        LlmembError: as `prepare`; what this call made is removed again.
        InterruptedRunError: SIGINT or SIGTERM; the same.
    """
    settings = make_settings(overrides)
    _refuse_unused(find_preset(settings.data.dataset), settings.data)
    check_rules(settings.data)
    workspace = Workspace(root.resolve())
    if _is_finished(workspace):
        _refuse_other(workspace, settings)
    with _locked_directory(workspace), terminate_as_interrupt():
        # Whoever held the lock a moment ago may have finished meanwhile.
        if _is_finished(workspace):
            _refuse_other(workspace, settings)
            return workspace, prepare(workspace, load_settings(workspace.settings_file), report)
        return workspace, _create(workspace, settings, report, written)


def _create(workspace: Workspace, settings: Settings, report: Reporter, written: Collection[str]) -> StageResult:
    """Fill a directory that this call has locked, or leave it as if this call had never been."""
    _refuse_filled(workspace.root)
    try:
        write_settings(workspace.settings_file, settings, keep=set(written))
        return prepare(workspace, settings, report)
    except KeyboardInterrupt:
        _remove_unfinished(workspace.root)
        raise InterruptedRunError("interrupted; no workspace was made", hint="run the same command again") from None
    except BaseException:
        _remove_unfinished(workspace.root)
        raise


@contextmanager
def _locked_directory(workspace: Workspace) -> Iterator[None]:
    """Hold the lock of the workspace's directory; one made for this goes again when nothing came into it."""
    root = workspace.root
    made = not root.exists()
    if not is_workspace(root):
        _refuse_filled(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlmembError(f"cannot make the workspace: {error.strerror}", where=str(root)) from error
    try:
        with write_lock(workspace):
            yield
    except BaseException:
        _remove_lock(root)
        if made:
            with suppress(OSError):
                root.rmdir()
        raise


def _refuse_unused(preset: DatasetPreset, data: DataSettings) -> None:
    """Refuse settings that say where the data is but that the preset would not look at."""
    defaults = DataSettings()
    for name in sorted(WHERE - set(preset.uses)):
        if getattr(data, name) != getattr(defaults, name):
            flags = ", ".join(f"--{used.replace('_', '-')}" for used in preset.uses)
            raise WrongUseError(
                f"{preset.name} has no use for data.{name} (--{name.replace('_', '-')})",
                hint=f"it takes {flags}"
                + ("" if preset.name == "custom" else "; your own tables: `llmemb init custom --interactions FILE`"),
            )


def _refuse_filled(root: Path) -> None:
    """Refuse a path that holds something else than an unfinished workspace."""
    if root.exists() and (not root.is_dir() or {child.name for child in root.iterdir()} - UNFINISHED):
        raise WrongUseError(
            "this is in the way: not an empty directory", where=str(root), hint="choose another --name or --path"
        )


def _is_finished(workspace: Workspace) -> bool:
    """Whether there is a workspace, and not one whose making was cut off or is going on.

    What holds anything of somebody else's, a `.git` say, is theirs: it is never cleared away.
    """
    if not is_workspace(workspace.root):
        return False
    names = {child.name for child in workspace.root.iterdir()}
    return f".{workspace.data.name}.partial" not in names or bool(names - UNFINISHED)


def _refuse_other(workspace: Workspace, settings: Settings) -> None:
    there = load_settings(workspace.settings_file)
    had = there.data.model_dump() | {"seed": there.seed}
    asked = settings.data.model_dump() | {"seed": settings.seed}
    # What a set may be left with decides whether it is made, not what it is.
    other = [key for key in asked if key != "allow_small" and asked[key] != had[key]]
    if other:
        differences = "; ".join(f"{key} is {had[key]!r} there, {asked[key]!r} asked for" for key in other[:3])
        raise WrongUseError(
            f"there is a workspace with other data settings here: {differences}"
            + (f"; and {len(other) - 3} more" if len(other) > 3 else ""),
            where=str(workspace.root),
            hint="choose another --name, or edit [data] in its llmemb.toml and run `llmemb run` there",
        )


def _remove_unfinished(root: Path) -> None:
    """Remove what a call that holds the lock has made; the lock itself stays while it is held."""
    for name in (SETTINGS_FILE, ".data.partial", "data"):
        child = root / name
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink(missing_ok=True)


def _remove_lock(root: Path) -> None:
    """Remove the lock file of a directory that has nothing else, unless another process holds it by now."""
    with suppress(OSError, Timeout), FileLock(root / LOCK, timeout=0):
        if {child.name for child in root.iterdir()} <= {LOCK}:
            (root / LOCK).unlink()
