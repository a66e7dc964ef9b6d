"""`llmemb eval`: measure runs, overall and by group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import (
    ForceOption,
    SetOption,
    WorkspaceOption,
    command,
    open_workspace,
    option,
    split_names,
    warn_of_damaged,
)
from llmemb_cli.config.settings import parse_assignments
from llmemb_cli.console import Output, fits, table, titled
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def evaluate(
    output: Output,
    runs: Annotated[list[str] | None, typer.Argument(help="Runs, variants or methods; default: all.")] = None,
    groups: Annotated[list[str] | None, option("eval.groups")] = None,
    protocol: Annotated[str | None, option("eval.protocol")] = None,
    k: Annotated[list[str] | None, option("eval.k", "-k")] = None,
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
    """Measure runs on the test item of every user: hit rate, NDCG, MRR, recall, overall and by group.

    With --protocol validation on the validation items, by which settings may be chosen.

    Several groups or cut-offs: repeat the flag, or put commas between. Every user's rank, groups and metrics are kept
    in runs/RUN/eval/PROTOCOL/ranks.parquet.

    Example: `llmemb eval --groups popularity,length --protocol sampled -k 5,10`
    """
    given = {
        "eval.groups": split_names(groups),
        "eval.protocol": protocol,
        "eval.k": _cut_offs(k),
        "eval.bins": bins,
        "eval.negatives": negatives,
        "eval.candidates": candidates,
        "eval.history": history,
        "eval.tail_threshold": tail_threshold,
        "eval.device": device,
    }
    located, settings = open_workspace(output, workspace, given, set)
    from llmemb_cli.evaluation.document import check_runs, eval_document, named_runs, trained_on
    from llmemb_cli.pipeline import unused_by_protocol

    said = {*parse_assignments(set or []), *(key for key, value in given.items() if value is not None)}
    if idle := [f"--{key}" for key in sorted(unused_by_protocol(settings)) if f"eval.{key}" in said]:
        output.message(f"no effect with --protocol {settings.eval.protocol}: {', '.join(idle)}", style="yellow")
    names = named_runs(located, runs) if runs else check_runs(located, [])
    from llmemb_cli.evaluation.stage import is_evaluated, run_eval

    reporter = output.reporter()
    warn_of_damaged(output, located)
    if not runs:
        present, others = trained_on(located, names)
        if present and others:
            reporter.warn(f"left out, trained on other data: {', '.join(others)}")
            names = present
    todo = [name for name in names if force or not is_evaluated(located, settings, name)]
    # What only shows figures needs no lock: it works beside a training, and where nothing can be written.
    with write_lock(located) if todo else nullcontext(), reporter.task("eval", len(todo), "runs") as task:
        for name in todo:
            run_eval(located, settings, name, reporter, force=force)
            task.advance(1)
    document = eval_document(located, settings, names)
    output.result(document, lambda console: show_eval(console, document))


def _cut_offs(given: list[str] | None) -> list[int] | None:
    from llmemb_cli.errors import WrongUseError

    names = split_names(given)
    if names is None:
        return None
    wrong = [name for name in names if not name.isdecimal() or int(name) < 1]
    if wrong:
        raise WrongUseError(f"-k {wrong[0]}: a number from 1 is expected", hint="for example -k 5,10,20")
    return sorted({10, *map(int, names)})


def show_eval(console: Console, document: dict[str, Any]) -> None:
    """One table for all users, then one for each grouping; the protocol stands in every title."""
    from llmemb_cli.reporting.tables import protocol_label

    first = document["runs"][0]
    label = protocol_label(first["protocol"])
    # Recall is not shown: with one target a user it is the hit rate. MRR@k is in --json and ranks.parquet.
    metrics = [name for name in first["overall"] if name != "n" and not name.startswith(("Recall", "MRR@"))]
    who = "users" if first["protocol"]["kind"] == "validation" else "test users"
    title = f"All {first['overall']['n']:,} {who}, {label}"
    _fitting(console, title, metrics, lambda some: _overall_table(document, some))
    if first["beyond"]:
        titled(console, f"The {first['beyond']['k']} items shown to each user", beyond_table(document))
    for name in first["groups"]:
        empty = [group["name"] for group in first["groups"][name] if not group["n"]]
        nobody = f"; no users: {', '.join(empty)}" if empty else ""
        title = f"By {name.replace('_', ' ')}, {label}\n{first['definitions'][name]}{nobody}"
        _fitting(console, title, metrics, partial(_group_table, document, name))


def _fitting(console: Console, title: str, metrics: list[str], make: Callable[[list[str]], Table]) -> None:
    """Print the metrics in one table, or in as few as the terminal is wide enough for; a cut-off stays together."""

    tables: list[list[str]] = []
    for cut in dict.fromkeys(name.partition("@")[2] for name in metrics):
        some = [name for name in metrics if name.partition("@")[2] == cut]
        if tables and fits(console, make(tables[-1] + some)):
            tables[-1] += some
        else:
            tables.append(some)
    for number, some in enumerate(tables):
        titled(console, title if number == 0 else title.partition("\n")[0], make(some))


def _overall_table(document: dict[str, Any], metrics: list[str]) -> Table:
    rows = [[run["run"], *(_number(run["overall"][m]) for m in metrics)] for run in document["runs"]]
    return table(["run", *metrics], rows)


def _group_table(document: dict[str, Any], name: str, metrics: list[str]) -> Table:
    from rich.text import Text

    made = table(["group", "run", "users", *metrics], [], left=2)
    for place, group in enumerate(document["runs"][0]["groups"][name]):
        if not group["n"]:
            continue
        for number, run in enumerate(document["runs"]):
            figures = [_number(run["groups"][name][place][m]) for m in metrics]
            once = (group["name"], f"{group['n']:,}") if number == 0 else ("", "")
            made.add_row(*(Text(cell) for cell in [once[0], run["run"], once[1], *figures]))
        made.add_section()
    return made


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
