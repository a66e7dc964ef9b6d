"""Which workspace a command works in, and where things are inside it (DESIGN section 3)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmemb_cli.errors import WrongUseError

SETTINGS_FILE = "llmemb.toml"
VARIABLE = "LLMEMB_WORKSPACE"
PLAIN_NAME = re.compile(r"[^\W_][\w.+=-]{0,150}")


@dataclass(frozen=True)
class Workspace:
    """A directory with `llmemb.toml` in it; knows the place of every artefact."""

    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / SETTINGS_FILE

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def prompts(self) -> Path:
        return self.root / "prompts"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def scft(self, run: str = "default") -> Path:
        return self.root / "scft" / run

    def embeddings(self, name: str = "scft") -> Path:
        return self.root / "embeddings" / name

    def run(self, name: str) -> Path:
        """Raises WrongUseError: the name is no plain one, and would lie elsewhere or be hard to type."""
        if not PLAIN_NAME.fullmatch(name):
            raise WrongUseError(
                f"{name!r} is no name for a run",
                hint="letters, digits and -._+= are allowed, the first a letter or digit",
            )
        return self.root / "runs" / name

    def candidates(self, name: str) -> Path:
        return self.root / "candidates" / name

    def evaluation(self, run: str, protocol: str) -> Path:
        return self.run(run) / "eval" / protocol


def is_workspace(path: Path) -> bool:
    return (path / SETTINGS_FILE).is_file()


def find_candidates(start: Path) -> list[Path]:
    """Workspaces a command started in `start` may mean: the nearest one upwards, else those just below.

    What may not be looked into is passed over: it hides nothing beside it.
    """
    for folder in (start, *start.parents):
        if _seen_to_be_workspace(folder):
            return [folder]
    try:
        return sorted(child for child in start.iterdir() if _seen_to_be_workspace(child))
    except PermissionError:
        return []


def _seen_to_be_workspace(path: Path) -> bool:
    try:
        return is_workspace(path)
    except PermissionError:
        return False


def find_workspace(explicit: Path | None = None, start: Path | None = None) -> Workspace:
    """The workspace to use: `explicit`, then $LLMEMB_WORKSPACE, then upwards, then the only one below.

    Raises:
        WrongUseError: there is none, or several to choose from.
    """
    named = explicit or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        if not is_workspace(named):
            source = "--workspace" if explicit else VARIABLE
            raise WrongUseError(
                f"no workspace here: {SETTINGS_FILE} is missing",
                where=f"{source} {named}",
                hint="name a directory that `llmemb init` made",
            )
        return Workspace(named.resolve())
    found = find_candidates((start or Path.cwd()).resolve())
    if not found:
        raise WrongUseError(
            "no workspace found in this directory, above it or just below it",
            hint="make one with `llmemb init ml-100k`, or name one with --workspace DIR",
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise WrongUseError(f"several workspaces here: {names}", hint="choose one with --workspace DIR")
    return Workspace(found[0])
