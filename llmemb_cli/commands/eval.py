"""`llmemb eval`: measure runs, overall and by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output, table, titled
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def evaluate(
    output: Output,
    runs: Annotated[list[str] | None, typer.Argument(help="Runs to measure; default: all.")] = None,
    groups: Annotated[list[str] | None, option("eval.groups")] = None,
    protocol: Annotated[str | None, option("eval.protocol")] = None,
    k: Annotated[list[int] | None, option("eval.k", "-k")] = None,
    negatives: Annotated[int | None, option("eval.negatives")] = None,
    candidates: Annotated[str | None, option("eval.candidates")] = None,
    history: Annotated[str | None, option("eval.history")] = None,
    bins: Annotated[str | None, option("eval.bins")] = None,
    tail_threshold: Annotated[int | None, option("eval.tail_threshold")] = None,
    device: Annotated[str | None, option("eval.device")] = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Measure runs on the test item of every user: hit rate, NDCG, MRR, overall and by group.

    Every run's ranks are kept as a table in runs/RUN/eval/PROTOCOL/ranks.parquet.

    Example: `llmemb eval --groups popularity --protocol sampled`
    """
    given = {
        "eval.groups": groups or None,
        "eval.protocol": protocol,
        "eval.k": sorted({*k, 10}) if k else None,
        "eval.bins": bins,
        "eval.negatives": negatives,
        "eval.candidates": candidates,
        "eval.history": history,
        "eval.tail_threshold": tail_threshold,
        "eval.device": device,
    }
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.evaluation.document import check_runs, eval_document

    names = check_runs(located, runs or [])
    from llmemb_cli.evaluation.stage import run_eval

    reporter = output.reporter()
    with write_lock(located), reporter.task("eval", len(names), "runs") as task:
        for name in names:
            run_eval(located, settings, name, reporter, force=force)
            task.advance(1)
    document = eval_document(located, settings, names)
    output.result(document, lambda console: show_eval(console, document))


def show_eval(console: Console, document: dict[str, Any]) -> None:
    """One table for all users, then one for each grouping; the protocol stands in every title."""
    from rich.text import Text

    from llmemb_cli.reporting.tables import protocol_label

    first = document["runs"][0]
    label = protocol_label(first["protocol"])
    metrics = [name for name in first["overall"] if name != "n"]
    rows = [[run["run"], *(_number(run["overall"][m]) for m in metrics)] for run in document["runs"]]
    titled(console, f"All {first['overall']['n']:,} test users, {label}", table(["run", *metrics], rows))
    if first["beyond"]:
        titled(console, f"The {first['beyond']['k']} items shown to each user", beyond_table(document))
    for name in first["groups"]:
        title = f"By {name.replace('_', ' ')}, {label}\n{first['definitions'][name]}"
        made = table(["group", "run", "users", *metrics], [], left=2)
        for place, group in enumerate(first["groups"][name]):
            if not group["n"]:
                continue
            for number, run in enumerate(document["runs"]):
                figures = [_number(run["groups"][name][place][m]) for m in metrics]
                name_once = group["name"] if number == 0 else ""
                made.add_row(*(Text(cell) for cell in [name_once, run["run"], f"{group['n']:,}", *figures]))
            made.add_section()
        titled(console, title, made)


def beyond_table(document: dict[str, Any]) -> Table:
    """What the lists of each run are like."""
    columns = {"coverage": ".1%", "gini": ".3f", "popularity": ".1f", "novelty": ".2f", "diversity": ".3f"}
    rows = [
        [run["run"], *(_number(run["beyond"][name], how) for name, how in columns.items())]
        for run in document["runs"]
        if run["beyond"]
    ]
    return table(["run", *columns], rows)


def _number(value: float | None, how: str = ".4f") -> str:
    return "-" if value is None else format(value, how)


app = command(evaluate)
