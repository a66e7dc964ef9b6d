"""`llmemb compare`: runs side by side, and whether the difference is chance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from llmemb_cli.commands.common import (
    SetOption,
    WorkspaceOption,
    command,
    open_workspace,
    option,
    split_names,
    warn_of_damaged,
)
from llmemb_cli.console import Output, fits, table, titled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


LEFT_OUT = {"measured_otherwise": "measured on other data or in another way", "not_evaluated": "not evaluated"}

Runs = Annotated[
    list[str] | None,
    typer.Argument(help="Runs, variants (names without the seed), methods, or run directories; default: all."),
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", help="Run, variant or method to compare with [default: none, per backbone]."),
]
Metrics = Annotated[
    list[str] | None, typer.Option("--metric", help="Metrics, with commas between [default: HR@10,NDCG@10].")
]
Details = Annotated[
    bool,
    typer.Option("--details", help="Also difference with 95 % interval, effect size, wins and losses, p over seeds."),
]
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
    details: Details = False,
    format: Format = None,
    out: OutputFile = None,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """Compare runs: mean and deviation over seeds, gain over a baseline, paired test, effect size.

    Runs that differ only in their seed are one variant. Runs measured on another split, other data, users or
    candidates, or by another protocol, are refused.

    Example: `llmemb compare none llmemb --test wilcoxon --format markdown`
    """
    given = {"eval.groups": split_names(groups), "eval.protocol": protocol}
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.evaluation.compare import compare_runs
    from llmemb_cli.evaluation.evaluated import left_out

    how: dict[str, Any] = {"baseline": baseline, "test": test, "correction": correction, "alpha": alpha}
    written = _format_of(out)
    metrics = tuple(dict.fromkeys(split_names(metric) or ("HR@10", "NDCG@10")))
    document = compare_runs(located, settings, runs or [], metrics=metrics, **how)
    warn_of_damaged(output, located)
    if not runs:
        shown_runs = [run for variant in document["variants"] for run in variant["runs"]]
        document["left_out"] = left_out(located, settings, shown_runs)
        for why, names in document["left_out"].items():
            if names:
                output.reporter().warn(f"left out, {LEFT_OUT[why]}: {', '.join(names)}")
    if out is not None:
        from llmemb_cli.workspace.store import write_text

        write_text(out, _text(document, format or written))
        output.message(f"wrote {out}")

    def shown(console: Console) -> None:
        if format is not None and out is None:
            console.file.write(_text(document, format))
        else:
            show(console, document, details)

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


def show(console: Console, document: dict[str, Any], details: bool = False) -> None:
    """One table for each part of the users; one for each metric too, where the terminal is narrow."""
    from llmemb_cli.reporting.tables import caption, runs_behind

    parts = document["variants"][0]["parts"]
    everybody = [part for part in parts if part != "overall" and parts[part]["n"] == parts["overall"]["n"]]
    for part, first in parts.items():
        if part in everybody:
            continue
        title = f"{part}, {first['n']:,} users"
        if details:
            for metric in document["metrics"]:
                _detail_tables(console, f"{metric}, {title}", document, part, metric)
            continue
        made = _part_table(document, part, document["metrics"])
        if fits(console, made):
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
    for variant, runs in runs_behind(document).items():
        console.print(f"runs of {variant}: {', '.join(runs)}", style="dim", markup=False)
    for part in everybody:
        console.print(f"{part}: all {parts[part]['n']:,} users, so as overall", style="dim", markup=False)
    for text in document["definitions"].values():
        console.print(text, style="dim", markup=False)


def _part_table(document: dict[str, Any], part: str, metrics: list[str]) -> Table:
    """Figure, gain and p-value of some metrics for one part of the users."""
    several = any(len(entry["seeds"]) > 1 for entry in document["variants"])
    seeds = ["seeds"] if several else []
    made = table(["variant", *seeds, *(name for metric in metrics for name in (metric, "gain", "p"))], [])
    for entry in document["variants"]:
        cells = [Text(str(len(entry["seeds"])))] if several else []
        for metric in metrics:
            cell = entry["parts"][part][metric]
            gain, p = cell.get("gain"), cell.get("p_corrected")
            cells += [_marked(cell), Text("" if gain is None else f"{gain:+.1%}"), Text("" if p is None else _p(p))]
        made.add_row(Text(entry["variant"]), *cells)
    return made


def _marked(cell: dict[str, Any]) -> Text:
    from llmemb_cli.reporting.tables import figure

    return Text(figure(cell), {1: "bold", 2: "underline", None: ""}[cell["place"]])


def _detail_tables(console: Console, title: str, document: dict[str, Any], part: str, metric: str) -> None:
    """Everything that is known of each comparison: in one table, or in two where the terminal is narrow."""
    size = ("figure", "gain", "difference", "95 % interval")
    chance = ("p", "corrected", "p over seeds", "effect d", "wins", "losses")
    for columns in ((size + chance,), (size, chance)):
        made = [table(["variant", *some], []) for some in columns]
        for one, some in zip(made, columns, strict=True):
            for entry in document["variants"]:
                cells = _detail_cells(entry["parts"][part][metric])
                one.add_row(Text(entry["variant"]), *(cells.get(name, Text("")) for name in some))
        if all(fits(console, one) for one in made):
            break
    for number, one in enumerate(made):
        titled(console, title if number == 0 else f"{title}: chance or not", one)


def _detail_cells(cell: dict[str, Any]) -> dict[str, Text]:
    if "difference" not in cell:
        return {"figure": _marked(cell)}
    low, high = cell["interval"]
    texts = {
        "gain": "" if cell["gain"] is None else f"{cell['gain']:+.1%}",
        "difference": f"{cell['difference']:+.4f}",
        "95 % interval": f"{low:+.4f} to {high:+.4f}",
        "p": _p(cell["p"]),
        "corrected": _p(cell["p_corrected"]),
        "p over seeds": "" if cell["p_seeds"] is None else _p(cell["p_seeds"]),
        "effect d": "" if cell["effect"] is None else f"{cell['effect']:+.2f}",
        "wins": f"{cell['wins']:,}",
        "losses": f"{cell['losses']:,}",
    }
    return {"figure": _marked(cell)} | {name: Text(text) for name, text in texts.items()}


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


app = command(compare)
