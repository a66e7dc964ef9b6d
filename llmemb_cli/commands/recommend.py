"""`llmemb recommend`: the items a run would show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import (
    SetOption,
    WorkspaceOption,
    best_of_runs,
    command,
    open_workspace,
    option,
)
from llmemb_cli.console import Output, table, titled
from llmemb_cli.errors import WrongUseError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from llmemb_cli.datasets.split import Ragged, SplitData
    from llmemb_cli.evaluation.recommend import Known

USERS_SHOWN = 10

UsersFile = Annotated[
    Path | None,
    typer.Option("--users", help="File with user ids: one a line, or CSV or Parquet with a column user_id."),
]
Items = Annotated[
    str | None,
    typer.Option("--items", metavar="ID,ID,...", help="A history of item ids instead of a user, oldest first."),
]
History = Annotated[
    Literal["full", "eval", "train"],
    typer.Option("--history", help="Of known users: all of it, without the test item, or the training part alone."),
]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write all lists there: FILE.parquet, .csv or .json.")
]


def recommend(
    output: Output,
    users: Annotated[list[str] | None, typer.Argument(help="User ids.")] = None,
    users_file: UsersFile = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user of the data.")] = False,
    items: Items = None,
    history: History = "full",
    run: Annotated[
        str | None, typer.Option("--run", help="Run to ask [default: the one with the best validation NDCG@10].")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many items a user.")] = 10,
    keep: Annotated[bool, typer.Option("--keep-history", help="Also show items of the history.")] = False,
    out: OutputFile = None,
    device: Annotated[str | None, option("eval.device")] = None,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
) -> None:
    """The best items for users of the data, or after a history given as item ids, with their scores.

    Scores are the model's own: they order the items of one list, and mean nothing across users or runs.

    Example: `llmemb recommend 196 --top 5`
    """
    located, settings = open_workspace(output, workspace, {"eval.device": device}, set)
    from llmemb_cli.datasets.split import load_split
    from llmemb_cli.devices import pick_device
    from llmemb_cli.evaluation.document import check_runs, known_runs
    from llmemb_cli.evaluation.recommend import as_entries, as_frame, top_items
    from llmemb_cli.evaluation.spaces import item_titles
    from llmemb_cli.reporting.spreadsheet import safe_cell
    from llmemb_cli.srs.recommender import load_recommender

    given = sum([bool(users), users_file is not None, all_users, items is not None])
    if given != 1:
        said = "name users, or --users FILE, or --all-users, or --items ID,ID,..."
        hint = "llmemb recommend --help"
        if users and (run_named := [one for one in users if one in known_runs(located)]):
            hint = f"a run is named with --run {run_named[0]}"
        raise WrongUseError(f"{said}: only one of them" if given else said, hint=hint)
    if out is not None and out.suffix not in (".parquet", ".csv", ".json"):
        raise WrongUseError(f"--output {out}: its ending says no format", hint=".parquet, .csv or .json")
    chosen = check_runs(located, [run])[0] if run else best_of_runs(output, located)
    if run is None:
        output.message(f"run {chosen} (best validation NDCG@10)", style="dim")
    data = load_split(located.data)
    if items is not None:
        asked, histories = [""], _history_of(output, data, items)
    else:
        names = read_users(users_file) if users_file else None if all_users else users
        asked, histories = _users(output, data, names, history, strict=users_file is None)
    device = pick_device(settings.eval.device)
    model = load_recommender(located.run(chosen), data, device)
    found, scores = top_items(
        model, histories, top, filter_history=not keep, batch_users=settings.eval.batch_users, device=device
    )
    # Lists as text are made for those who will be seen alone: a million of them would fill the memory.
    seen = None if output.json or (out and out.suffix == ".json") else 0 if out else USERS_SHOWN
    entries = as_entries(asked[:seen], found[:seen], scores[:seen], data.item_ids.to_list(), item_titles(located))
    document = {
        "run": chosen,
        "k": top,
        "history": "given" if items is not None else history,
        "filtered": not keep,
        "n_users": len(asked),
        "users": entries,
    }
    frame = as_frame(asked, found, scores, data.item_ids)
    if out is not None:
        _write(out, document, frame)
        names_out = (
            [one for key in ("user_id", "item_id") for one in frame[key].unique()] if out.suffix == ".csv" else []
        )
        formulas = sum(safe_cell(one) != one for one in names_out)
        if formulas:
            # Programs read this file by its ids, so they stand as they are.
            output.reporter().warn(f"{formulas} ids look like formulas to a spreadsheet: import the file as text")
        output.message(f"wrote {len(frame):,} rows to {out}")
    output.result(document, lambda console: None if out else show(console, document))


def _history_of(output: Output, data: SplitData, items: str) -> Ragged:
    """The history that `--items` gives, of items that the data has; an id may itself have commas."""
    from llmemb_cli.evaluation.recommend import ragged, rows_of

    item_ids = data.item_ids.to_list()
    given = [items] if items in item_ids else [one.strip() for one in items.split(",") if one.strip()]
    if not given:
        raise WrongUseError("--items is empty", hint="for example --items ID,ID, oldest first")
    rows, missing = rows_of(given, item_ids, "item")
    _say_missing(output, missing, "items of the history", strict=False)
    return ragged([rows + 1])


def _users(
    output: Output, data: SplitData, names: list[str] | None, history: Known, *, strict: bool
) -> tuple[list[str], Ragged]:
    """Ids and histories of the users asked for, or of all.

    Args:
        strict: whether one that is not in the data is refused; else it is left out.
    """
    import numpy as np

    from llmemb_cli.evaluation.recommend import known_history, rows_of

    known = data.user_ids.to_list()
    rows, missing = (np.arange(data.n_users), []) if names is None else rows_of(names, known, "user")
    _say_missing(output, missing, "users", strict=strict)
    histories = known_history(data, rows, history)
    if empty := int((histories.lengths() == 0).sum()):
        output.reporter().warn(f"{empty} users have no history of this kind: their lists are empty")
    return [known[row] for row in rows], histories


def _say_missing(output: Output, missing: list[str], what: str, *, strict: bool) -> None:
    """Ids that the data does not have are left out of many, and refused among those typed by hand."""

    if not missing:
        return
    said = f"{len(missing):,} {what} are not in the data, for example {missing[0]}"
    if strict:
        raise WrongUseError(said, hint="what the rules of `llmemb init` left out is not there (`llmemb data`)")
    output.reporter().warn(f"left out: {said}")


def read_users(path: Path) -> list[str]:
    """User ids from a file: a column `user_id` of Parquet or CSV, or one id a line.

    Raises:
        WrongUseError: there is no such file.
        BadDataError: no such column, or no id in it.
    """
    import polars as pl

    from llmemb_cli.errors import BadDataError, WrongUseError

    try:
        if path.suffix == ".parquet":
            ids = pl.read_parquet(path)["user_id"].cast(pl.String).to_list()
        elif path.suffix == ".csv":
            ids = pl.read_csv(path, infer_schema=False)["user_id"].to_list()
        else:
            ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise WrongUseError("no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise BadDataError(
            f"cannot read user ids: {str(error).splitlines()[0]}",
            where=str(path),
            hint="one id a line, or CSV or Parquet with a column user_id",
        ) from None
    ids = [one for one in ids if one]
    if not ids:
        raise BadDataError("no user ids in it", where=str(path))
    return ids


def _write(out: Path, document: dict[str, Any], frame: pl.DataFrame) -> None:
    from llmemb_cli.workspace.store import atomic_path, write_json, write_parquet

    if out.suffix == ".json":
        write_json(out, document)
    elif out.suffix == ".csv":
        with atomic_path(out) as part:
            frame.write_csv(part)
    else:
        write_parquet(out, frame)


def show(console: Console, document: dict[str, Any]) -> None:
    """One list a user."""
    for entry in document["users"]:
        whom = f"for user {entry['user_id']}" if entry["user_id"] else "after the history given"
        rows = [[str(one["rank"]), one["item_id"], one["title"], f"{one['score']:.3f}"] for one in entry["items"]]
        title = f"{document['run']} {whom}" if rows else f"nothing {whom}: no history"
        titled(console, title, table(["", "item", "title", "score"], rows, left=3))
    more = document["n_users"] - len(document["users"])
    if more > 0:
        console.print(f"and {more:,} more users: --output FILE.parquet, or --json", style="dim")


app = command(recommend)
