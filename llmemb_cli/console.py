"""What the command layer shows: results on stdout, messages and progress on stderr, errors as text or JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from llmemb_cli.errors import LlmembError
from llmemb_cli.progress import Reporter, Task

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table

PLAIN_EVERY_SECONDS = 10.0
PIPE_WIDTH = 120
ROWS_SHOWN = 8  # of a live table of epochs: the newest


@dataclass
class Output:
    """How one command talks: `json` prints one document and nothing else on stdout and implies `quiet`."""

    json: bool = False
    quiet: bool = False
    debug: bool = False

    def result(self, document: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print a command's result: the document with --json, else what `show` draws on stdout."""
        if self.json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n")
            sys.stdout.flush()
        else:
            show(stdout())

    def reporter(self) -> Reporter:
        """Progress for a stage: live bars on a terminal, a line now and then elsewhere, nothing if quiet."""
        if self.quiet or self.json:
            return Reporter()
        return LiveReporter() if is_live(sys.stderr) else PlainReporter()

    def message(self, text: str, style: str = "") -> None:
        """A line for the person on stderr, taken literally; not with --quiet or --json."""
        if not (self.quiet or self.json):
            stderr().print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def error(self, error: LlmembError) -> None:
        """Show an error: JSON on stdout with --json, else text on stderr."""
        if self.json:
            body = {"code": error.code, "message": error.message, "where": error.where, "hint": error.hint}
            sys.stdout.write(json.dumps({"error": body}, ensure_ascii=False, indent=2) + "\n")
            sys.stdout.flush()
            return
        from rich.text import Text

        console = stderr()
        text = Text.assemble(("error: ", "bold red"), error.message)
        console.print(text, soft_wrap=True)
        if error.where:
            console.print(Text.assemble(("  in:  ", "dim"), error.where), soft_wrap=True)
        if error.hint:
            console.print(Text.assemble(("  try: ", "bold"), error.hint), soft_wrap=True)


def is_live(stream: TextIO) -> bool:
    """Whether live bars and questions are right: a real terminal, whatever FORCE_COLOR says."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def may_ask(output: Output) -> bool:
    """Whether a missing choice may be asked for."""
    return not (output.json or output.quiet) and is_live(sys.stdin) and is_live(sys.stderr)


def stdout() -> Console:
    return _console(sys.stdout)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, width=_width(stream), highlight=False)


def reader_gone() -> NoReturn:
    """End quietly with 141, as other Unix tools do when who reads their output (`head`) has gone."""
    # What is still to be written, also at the end of the process, goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(141)


def _width(stream: TextIO) -> int | None:
    """Columns for a pipe or file: those of the terminal beside it, where what is piped is often seen; else 120."""
    if stream.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return None  # rich asks the terminal, or the variable
    for other in (sys.stderr, sys.stdin):
        if other.isatty():
            with suppress(OSError):
                return os.get_terminal_size(other.fileno()).columns or PIPE_WIDTH
    return PIPE_WIDTH


# The consoles of the live bars that are shown now: what else is said must stand above the bar, not in it.
_live: list[Console] = []


def stderr() -> Console:
    return _live[-1] if _live else _console(sys.stderr)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, left: int = 1) -> Table:
    """A table in the one style of the tool: the first `left` columns left, others right, cells taken literally."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def fits(console: Console, made: Table) -> bool:
    """Whether the terminal is wide enough for a table without breaking a cell."""
    return console.measure(made, options=console.options.update(width=10_000)).maximum <= console.width


def titled(console: Console, title: str, made: Table) -> None:
    """Print a table below its title; a title inside the table would be broken at the table's own width."""
    from rich.text import Text

    console.print(Text(title, style="italic"))
    console.print(made)


def duration(seconds: float) -> str:
    """4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, thing: str) -> str:
    """1 run, 12,345 runs."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def shortened(text: str, width: int) -> str:
    """The text with its middle left out where it is longer than `width`."""
    if len(text) <= width:
        return text
    end = max((width - 1) // 2, 1)
    return f"{text[: max(width - 1 - end, 1)]}…{text[-end:]}"


def amount(number: float, unit: str) -> str:
    """How much of a task: 12,345 steps, 4.2 GB."""
    if unit != "bytes":
        return counted(round(number), unit.removesuffix("s")) if unit.endswith("s") else f"{number:,.0f} {unit}"
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:,.1f} {name}"
    return f"{number:.0f} bytes"


def _rate(number: float, unit: str) -> str:
    return f"{amount(number, unit)}/s" if unit == "bytes" else f"{number:.3g}/s"


def _count(done: int, total: int | None, unit: str) -> str:
    """12/100 steps, or 1.2 GB of 4.2 GB."""
    if not total:
        return amount(done, unit)
    return f"{amount(done, unit)} of {amount(total, unit)}" if unit == "bytes" else f"{done:,}/{total:,} {unit}"


def _finished(label: str, done: int, unit: str, started: float, figures: dict[str, float | str]) -> str:
    """The line that stays of a task."""
    passed = duration(time.monotonic() - started)
    return f"{label}: {amount(done, unit)} in {passed}  {_figures(figures)}".rstrip()


def _figures(figures: dict[str, float | str]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())


class PlainReporter(Reporter):
    """For pipes and logs: a plain line every few seconds."""

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)  # noqa: T201

    def warn(self, message: str) -> None:
        print(f"warning: {message}", file=sys.stderr, flush=True)  # noqa: T201

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        return _PlainTask(label, total, unit, done)


class _PlainTask(Task):
    def __init__(self, label: str, total: int | None, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.done, self.start_done = label, total, unit, done, done
        self.started = self.shown = time.monotonic()
        self.figures: dict[str, float | str] = {}

    def advance(self, n: int = 1, **figures: float | str) -> None:
        self.done += n
        self.figures |= figures
        if time.monotonic() - self.shown >= PLAIN_EVERY_SECONDS:
            self._line()

    def row(self, figures: Mapping[str, str], best: bool = False) -> None:
        # Rounds of a moment would fill a log; what is shown is the newest one.
        if time.monotonic() - self.shown >= PLAIN_EVERY_SECONDS:
            line = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{self.label}: {line}{'  (best so far)' if best else ''}", file=sys.stderr, flush=True)  # noqa: T201

    def _line(self) -> None:
        self.shown = time.monotonic()
        passed = self.shown - self.started
        rate = (self.done - self.start_done) / passed if passed > 0 else 0.0
        left = f", {duration((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        count = _count(self.done, self.total, self.unit)
        line = f"{self.label}: {count}, {_rate(rate, self.unit)}{left}  {_figures(self.figures)}"
        print(line.rstrip(), file=sys.stderr, flush=True)  # noqa: T201

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            line = _finished(self.label, self.done, self.unit, self.started, self.figures)
            print(line, file=sys.stderr, flush=True)  # noqa: T201


class LiveReporter(Reporter):
    """For terminals: one live bar a task, with rate and time left."""

    def note(self, message: str) -> None:
        stderr().print(message, style="dim", markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        stderr().print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)

    def task(self, label: str, total: int | None = None, unit: str = "steps", done: int = 0) -> Task:
        return _LiveTask(label, total, unit, done)


class _LiveTask(Task):
    def __init__(self, label: str, total: int | None, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.done, self.start_done = label, total, unit, done, done
        self.started = time.monotonic()
        self.figures: dict[str, float | str] = {}
        self.progress: Progress | None = None
        self.bar: TaskID | None = None
        self.rows: list[dict[str, str]] = []

    def row(self, figures: Mapping[str, str], best: bool = False) -> None:
        if best:
            self.rows = [row | {"": ""} for row in self.rows]
        self.rows.append({"": "*" if best else "", **figures})
        # The best one stays, however long ago it was.
        while len(self.rows) > ROWS_SHOWN:
            del self.rows[next(i for i, row in enumerate(self.rows) if not row[""])]

    def _table(self) -> Iterator[Table]:
        """The newest rows and the best one, marked; nothing before there is a row."""
        if self.rows:
            columns = list(self.rows[-1])
            yield table(columns, [[row.get(name, "") for name in columns] for row in self.rows])

    def __enter__(self) -> Task:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        task = self

        class WithTable(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                yield from task._table()
                yield self.make_tasks_table(self.tasks)

        console = stderr()
        narrow = console.width < 100
        self.progress = WithTable(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12 if narrow else 24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
        )
        # The name of a file gives way: what is done and what is left must be read.
        label = shortened(self.label, console.width - 56) if self.unit == "bytes" else self.label
        self.bar = self.progress.add_task(
            label, total=self.total, completed=self.done, count=self._count(), figures=""
        )
        self.progress.start()
        _live.append(console)
        return self

    def _count(self) -> str:
        passed = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.start_done) / passed
        return f"{_count(self.done, self.total, self.unit)}  {_rate(rate, self.unit)}"

    def advance(self, n: int = 1, **figures: float | str) -> None:
        self.done += n
        self.figures |= figures
        if self.progress is not None and self.bar is not None:
            self.progress.update(self.bar, completed=self.done, count=self._count(), figures=_figures(self.figures))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
            _live.remove(self.progress.console)
        for made in self._table():
            stderr().print(made)
        if error is None:
            line = _finished(self.label, self.done, self.unit, self.started, self.figures)
            stderr().print(line, markup=False, soft_wrap=True)
