"""`llmemb adjust`: what another logit adjustment would do to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from llmemb_cli.commands.common import (
    SetOption,
    WorkspaceOption,
    best_of_runs,
    command,
    open_workspace,
    option,
    split_names,
)
from llmemb_cli.console import Output, table, titled
from llmemb_cli.errors import WrongUseError
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from rich.console import Console


def adjust(
    output: Output,
    run: Annotated[str | None, typer.Argument(help="Run [default: best validation NDCG@10].")] = None,
    strengths: Annotated[
        list[str] | None,
        typer.Option("--logit-adjustment", help="Adjustments to rank with, with commas between [default: 0 to 2]."),
    ] = None,
    share: Annotated[float | None, option("rat.logit_adjustment_share")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the run with each of these adjustments as a run of its own.")
    ] = False,
    device: Annotated[str | None, option("eval.device")] = None,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """Head against tail: how a trained run would rank validation items with another logit adjustment, in seconds.

    What training takes out of the scores for popularity is known, so the scores of a run with another adjustment
    need no training. Choose one, then --keep it: a run that ranks so, for eval, recommend and export. A run trained
    with it (`llmemb rat --logit-adjustment`) ends near these figures. Test items are not looked at.

    Example: `llmemb adjust sasrec-llm2x-42 --logit-adjustment 1.5 --logit-adjustment-share 0.8 --keep`
    """
    given = {"rat.logit_adjustment_share": share, "eval.device": device}
    located, settings = open_workspace(output, workspace, given, set)
    asked = _strengths(strengths)
    told = {key: value for table in settings.rat_flags.values() for key, value in table.items()}
    share = told.pop("logit_adjustment_share", None)
    if told:
        output.message(f"no effect on a run that is trained: {', '.join(sorted(told))}", style="yellow")
    if keep and asked is None:
        raise WrongUseError("--keep needs an adjustment to keep", hint="add --logit-adjustment, for example 1.5")
    from llmemb_cli.evaluation.adjust import adjusted, keep_adjusted
    from llmemb_cli.evaluation.document import check_runs

    chosen = check_runs(located, [run])[0] if run is not None else best_of_runs(output, located, trained=True)
    document = adjusted(located, settings, chosen, asked, share)
    if keep:
        with write_lock(located):
            document["kept"] = keep_adjusted(located, settings, chosen, document["adjustments"], output.reporter())
    output.result(document, lambda console: show(console, document))


def _strengths(given: list[str] | None) -> list[float] | None:
    from llmemb_cli.config.rat import RatSettings

    names = split_names(given)
    if names is None:
        return None
    try:
        return [RatSettings.model_validate({"logit_adjustment": name}).logit_adjustment for name in names]
    except ValueError:
        said = ",".join(names)
        raise WrongUseError(
            f"--logit-adjustment {said}: numbers from 0 to 100 are expected", hint="for example 0.5,1,1.5,2"
        ) from None


def show(console: Console, document: dict[str, Any]) -> None:
    """One line an adjustment, the best figure of each column bold, the run's own line marked."""
    entries = document["adjustments"]
    columns = [(part, metric) for part in ("overall", "tail", "head") for metric in ("HR@10", "NDCG@10")]
    best = {
        (part, metric): max((one[part][metric] for one in entries if one[part][metric] is not None), default=None)
        for part, metric in columns
    }
    made = table(["adjustment", "of\nitems", *(f"{part}\n{metric}" for part, metric in columns)], [])
    for one in entries:
        weight, of_items = one["logit_adjustment"], one["logit_adjustment_share"]
        figures = [_figure(one[part][metric], best[part, metric]) for part, metric in columns]
        made.add_row(f"{weight:g}{' *' if one['own'] else '  '}", f"{of_items:.0%}" if weight else "-", *figures)
    users = entries[0]["overall"]["n"]
    kept = "" if document["history"] == "exclude" else ", their history among the items"
    titled(console, f"{document['run']}, validation items of {users:,} users, full ranking{kept}", made)
    of = f" of {document['adjusted_from']}" if document["adjusted_from"] else ""
    console.print(f"* the run as it is; --keep makes a run of another one{of}", style="dim")
    console.print(document["definition"], style="dim", markup=False)
    for one in document.get("kept", []):
        done = "kept" if one["built"] else "up to date"
        console.print(f"{done}: {one['run']}", markup=False, soft_wrap=True)


def _figure(value: float | None, best: float | None) -> Text:
    return Text("-") if value is None else Text(f"{value:.4f}", style="bold" if value == best else "")


app = command(adjust)
