"""`llmemb compare`: runs side by side, and whether the difference is chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output, table, titled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


Runs = Annotated[list[str] | None, typer.Argument(help="Runs, or run directories of other workspaces; default: all.")]
Baseline = Annotated[
    str | None, typer.Option("--baseline", help="Variant or run to compare with [default: none, per backbone].")
]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Metric; repeatable [default: HR@10, NDCG@10].")]
PairedTest = Annotated[
    Literal["t", "wilcoxon", "permutation", "bootstrap"], typer.Option("--test", help="Paired test over users.")
]
Corrected = Annotated[
    Literal["holm", "bh", "none"], typer.Option("--correction", help="For the number of tests in the table.")
]
Format = Annotated[
    Literal["markdown", "latex", "csv"] | None, typer.Option("--format", help="Print the table as text.")
]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the table there: FILE.md, .tex, .csv or .json.")
]


def compare(
    output: Output,
    runs: Runs = None,
    baseline: Baseline = None,
    metric: Metrics = None,
    test: PairedTest = "t",
    correction: Corrected = "holm",
    alpha: Annotated[float, typer.Option("--alpha", min=0.0, max=1.0, help="Level of significance.")] = 0.05,
    groups: Annotated[list[str] | None, option("eval.groups")] = None,
    protocol: Annotated[str | None, option("eval.protocol")] = None,
    format: Format = None,
    out: OutputFile = None,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """Compare runs: mean and deviation over seeds, gain over a baseline, paired test, effect size.

    Runs that differ only in their seed are one variant. Runs measured on other data, users, candidates or by another
    protocol are refused.

    Example: `llmemb compare --test wilcoxon --format markdown`
    """
    given = {"eval.groups": groups or None, "eval.protocol": protocol}
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.evaluation.compare import compare_runs

    how: dict[str, Any] = {"baseline": baseline, "test": test, "correction": correction, "alpha": alpha}
    written = _format_of(out)
    document = compare_runs(located, settings, runs or [], metrics=tuple(metric or ("HR@10", "NDCG@10")), **how)
    if out is not None:
        from llmemb_cli.workspace.store import write_text

        write_text(out, _text(document, format or written))
        output.message(f"wrote {out}")

    def shown(console: Console) -> None:
        if format is not None and out is None:
            console.file.write(_text(document, format))
        else:
            show(console, document)

    output.result(document, shown)


def _format_of(out: Path | None) -> str:
    from llmemb_cli.errors import WrongUseError

    known = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
    if out is not None and out.suffix not in known:
        raise WrongUseError(f"--output {out}: its ending says no format", hint=", ".join(known))
    return known[out.suffix] if out else "markdown"


def _text(document: dict[str, Any], format: str) -> str:
    import json

    from llmemb_cli.reporting.tables import csv_text, latex, markdown

    if format == "json":
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return {"markdown": markdown, "latex": latex, "csv": csv_text}[format](document)


def show(console: Console, document: dict[str, Any]) -> None:
    """One table for each part of the users; one for each metric too, where the terminal is narrow."""
    from llmemb_cli.reporting.tables import caption

    for part, first in document["variants"][0]["parts"].items():
        title = f"{part}, {first['n']:,} users"
        made = _part_table(document, part, document["metrics"])
        if console.measure(made, options=console.options.update(width=10_000)).maximum <= console.width:
            titled(console, title, made)
            continue
        for metric in document["metrics"]:
            titled(console, title, _part_table(document, part, [metric]))
    console.print(caption(document), style="dim", markup=False)
    against: dict[str, list[str]] = {}
    for entry in document["variants"]:
        if entry["baseline"]:
            against.setdefault(entry["baseline"], []).append(entry["variant"])
    for baseline, variants in against.items():
        console.print(f"against {baseline}: {', '.join(variants)}", style="dim", markup=False)


def _part_table(document: dict[str, Any], part: str, metrics: list[str]) -> Table:
    """Figure, gain and p-value of some metrics for one part of the users."""
    from rich.text import Text

    from llmemb_cli.reporting.tables import figure

    styles = {1: "bold", 2: "underline", None: ""}
    made = table(["variant", *(name for metric in metrics for name in (metric, "gain", "p"))], [])
    for entry in document["variants"]:
        cells = []
        for metric in metrics:
            cell = entry["parts"][part][metric]
            cells.append(Text(figure(cell), styles[cell["place"]]))
            gain, p = cell.get("gain"), cell.get("p_corrected")
            cells += [Text("" if gain is None else f"{gain:+.1%}"), Text("" if p is None else _p(p))]
        made.add_row(Text(entry["variant"]), *cells)
    return made


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


app = command(compare)
