"""A new workspace: its directory, its `llmemb.toml`, its data. Nothing is left behind when that fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from llmemb_cli.config.settings import load_settings, make_settings, write_settings
from llmemb_cli.datasets.prepare import prepare
from llmemb_cli.datasets.presets import find_preset
from llmemb_cli.errors import InterruptedRunError, LlmembError, WrongUseError
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace, is_workspace
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.stage import StageResult


def create_workspace(root: Path, overrides: dict[str, Any], report: Reporter) -> tuple[Workspace, StageResult]:
    """Make a workspace in `root` with the settings `overrides`, and its data; the same call again goes on.

    Raises:
        WrongUseError: `root` holds a workspace with other data settings, or something else.
        LlmembError: as `prepare`; a directory made by this call is removed again.
    """
    settings = make_settings(overrides)
    find_preset(settings.data.dataset)
    workspace = Workspace(root.resolve())
    fresh = not is_workspace(root)
    if fresh and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise WrongUseError(
            "this is in the way: not an empty directory", where=str(root), hint="choose another --name or --path"
        )
    made_directory = not root.exists()
    if fresh:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LlmembError(f"cannot make the workspace: {error.strerror}", where=str(root)) from error
        write_settings(workspace.settings_file, settings)
    else:
        _refuse_other(workspace, settings)
    try:
        with write_lock(workspace):
            return workspace, prepare(workspace, load_settings(workspace.settings_file), report)
    except InterruptedRunError:
        raise
    except LlmembError:
        if fresh:
            _remove(root, made_directory)
        raise


def _refuse_other(workspace: Workspace, settings: Any) -> None:
    there = load_settings(workspace.settings_file)
    if (there.data, there.seed) != (settings.data, settings.seed):
        raise WrongUseError(
            "there is a workspace with other data settings here",
            where=str(workspace.root),
            hint="choose another --name, or edit [data] in its llmemb.toml and run `llmemb run` there",
        )


def _remove(root: Path, made_directory: bool) -> None:
    for child in list(root.iterdir()):
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()
    if made_directory:
        root.rmdir()
