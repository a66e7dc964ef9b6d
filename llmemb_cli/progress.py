"""How stages report progress. Stages never print: they call a `Reporter`, the command layer shows it."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType


class Task:
    """One measured piece of work; the base class is silent. Use as a context manager."""

    def advance(self, n: int = 1, **figures: float | str) -> None:
        """Count `n` more units as done; `figures` (loss=..., ...) are shown beside the bar."""

    def row(self, figures: Mapping[str, str], best: bool = False) -> None:
        """Show a finished round, such as an epoch; `best`: none was better so far."""

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Reporter:
    """The silent reporter, for notebooks and tests. `console.py` has those for terminals and pipes."""

    def note(self, message: str) -> None:
        """A line worth reading (a clamp, a fallback the user asked for, a path)."""

    def warn(self, message: str) -> None:
        """A line the user should not miss."""

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        """Start a measured piece of work; `done` units were finished by an earlier, interrupted call."""
        return Task()
