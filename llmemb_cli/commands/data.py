"""`llmemb data`: what the workspace's data is, and how popular its items are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import WorkspaceOption, command, open_workspace
from llmemb_cli.console import Output, table
from llmemb_cli.errors import BadDataError
from llmemb_cli.pipeline import DATA_VERSION
from llmemb_cli.workspace.stage import require_stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

METRIC = "HR@10"
NARROWEST_BAR, WIDEST_BAR = 10, 60
EIGHTHS = " ▏▎▍▌▋▊▉"


def data(
    output: Output,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="NAME", help="Run whose HR@10 is drawn over the items. [default: the newest]"),
    ] = None,
    protocol: Annotated[
        Literal["full", "sampled"] | None,
        typer.Option("--protocol", help="Which of its evaluations. [default: the newest]"),
    ] = None,
    figure: Annotated[
        list[Path] | None,
        typer.Option(
            "--figure",
            metavar="FILE",
            help="Write the popularity curve there (LLMEmb Figure 1a): FILE.png, .svg or .pdf; repeatable.",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show the data: sizes beside published ones, source, what was left out, items by popularity.

    Where a run has been evaluated, its HR@10 is drawn over the histogram of items: how well it finds items of each
    popularity.

    Example: `llmemb data --run sasrec-none-42 --figure popularity.png --figure popularity.svg`
    """
    located, _ = open_workspace(output, workspace)
    manifest = require_stage(located.data, made_by="llmemb init")
    if manifest["made_from"]["version"] < DATA_VERSION:
        raise BadDataError(
            "the data was made by an older llmemb",
            where=str(located.data),
            hint="`llmemb run --dry-run` says what would be made again, `llmemb run` makes it",
        )
    from llmemb_cli.reporting.popularity import figure_format, popularity_curve, write_figure

    summary = manifest["summary"]
    for path in figure or []:
        figure_format(path)
    curve = popularity_curve(located, summary["popularity"], run, protocol)
    for path in figure or []:
        write_figure(path, curve)
        output.message(f"wrote {path}")

    def show(console: Console) -> None:
        show_sizes(console, summary)
        show_source(console, summary)
        show_account(console, summary)
        show_curve(console, curve)

    output.result({"workspace": str(located.root)} | summary | {"curve": curve}, show)


def show_sizes(console: Console, summary: dict[str, Any]) -> None:
    """Draw the sizes, beside published ones where there are any."""
    from rich.text import Text

    from llmemb_cli.datasets.card_text import published_lines, published_names, size_rows

    console.print(Text.assemble((summary["dataset"], "bold"), "  ", summary["title"]))
    console.print(table(["", "here", *published_names(summary)], size_rows(summary)))
    for line in published_lines(summary):
        _line(console, line, "dim")
    if summary["published"]:
        console.print()


def show_source(console: Console, summary: dict[str, Any]) -> None:
    """Draw where the data comes from, by which rules it was prepared, and what goes into prompts."""
    from llmemb_cli.datasets.card_text import split_line, tail_line, time_line

    source = summary["source"]
    preset = [f"--preset {summary['preset']}:"] if summary["preset"] else []
    facts = {
        "edition": source["edition"],
        "licence": source["licence"],
        "files": "\n".join(f"{file['name']}, {file['bytes']:,} bytes" for file in source["files"]),
        "columns": ", ".join(f"{role}: {column}" for role, column in source["columns"].items()),
        "time": time_line(summary),
        "rules": "\n".join([*preset, *summary["rules_in_words"]]),
        "split": split_line(summary),
        "tail": tail_line(summary),
    }
    console.print(pairs([(name, text) for name, text in facts.items() if text]))
    console.print()
    show_attributes(console, summary)
    console.print()


def show_attributes(console: Console, summary: dict[str, Any]) -> None:
    """Draw which attributes go into prompts, with the share of items that have them."""
    from llmemb_cli.datasets.card_text import attributes_in_order, leak_note

    inside: list[str] = []
    outside: list[str] = []
    for name, share in attributes_in_order(summary):
        if not share:
            continue
        leaks = " (leaks)" if name in summary["leaking"] else ""
        (inside if name in summary["attributes"] else outside).append(f"{name} {share:.0%}{leaks}")
    rows = [("in prompts", ", ".join(inside) or "none"), ("not in them", ", ".join(outside))]
    console.print(pairs([row for row in rows if row[1]]))
    for line in leak_note(summary):
        _line(console, line, "yellow")


def show_account(console: Console, summary: dict[str, Any]) -> None:
    """Draw how many rows were read and what became of them."""
    from llmemb_cli.datasets.card_text import row_account

    for number, account in enumerate(row_account(summary)):
        if number:
            console.print()
        console.print(pairs([(f"{count:,}", what) for what, count in account], justify="right"))


def show_curve(console: Console, curve: dict[str, Any]) -> None:
    """Draw items by popularity as bars, and over them the run's metric as marks of a scale of its own."""
    from rich.text import Text

    from llmemb_cli.reporting.popularity import run_label

    plain = console.options.ascii_only
    bins, run = curve["bins"], curve["run"]
    mark, block = ("o", "#") if plain else ("◆", "█")
    most = max(entry["items"] for entry in bins) or 1
    best = max((entry[METRIC] or 0.0 for entry in bins), default=0.0) or 1.0
    width = max(min(console.width - (47 if run else 39), WIDEST_BAR), NARROWEST_BAR)
    console.print()
    head = Text.assemble(
        ("interactions".rjust(15) + "items".rjust(10) + "  " + "test users".rjust(width + 11), "dim")
    )
    if run:
        head.append(METRIC.rjust(8), "dim")
    console.print(head)
    for entry in bins:
        bar = Text(_bar(entry["items"] / most, width, plain).ljust(width), "cyan")
        rate = entry[METRIC]
        if rate is not None:
            place = round((width - 1) * rate / best)
            bar = Text.assemble(bar[:place], (mark, "bold yellow"), bar[place + 1 :])
        line = Text(f"{entry['bin']:>15}{entry['items']:>10,}  ") + bar + Text(f" {entry['test_users']:>10,}")
        console.print(line + Text("" if not run else ("-" if rate is None else f"{rate:.4f}").rjust(8)))
    _line(console, f"{block} items by training interactions; the longest bar is {most:,}", "dim")
    if run:
        _line(
            console, f"{mark} {run_label(run)}; the right end is {best:.4f}, over all users {run[METRIC]:.4f}", "dim"
        )
    else:
        _line(console, f"Once a run has been evaluated (`llmemb eval`), its {METRIC} is drawn over the bars.", "dim")


def _bar(share: float, width: int, plain: bool) -> str:
    """A bar of `share` of the width; something above nothing is always seen."""
    if plain:
        return "#" * (max(round(share * width), 1) if share else 0)
    eighths = max(round(share * width * 8), 1) if share else 0
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def _line(console: Console, text: str, style: str) -> None:
    from rich.text import Text

    console.print(Text(text, style))


def pairs(rows: list[tuple[str, str]], *, justify: Literal["left", "right"] = "left") -> Table:
    """Rows of a name and a text that is folded beside it."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(justify=justify, no_wrap=True)
    made.add_column(overflow="fold")
    for name, text in rows:
        made.add_row(Text(name, "" if justify == "right" else "dim"), Text(text))
    return made


app = command(data)
