"""`llmemb runs`: list, show and remove runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import WorkspaceOption, command, open_workspace
from llmemb_cli.console import Output, duration, fits, table
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


COLUMNS = ["run", "valid", "time", "MB", "evaluated", ""]  # of the list


def runs(
    output: Output,
    action: Annotated[Literal["list", "show", "remove"], typer.Argument(help="What to do.")] = "list",
    names: Annotated[list[str] | None, typer.Argument(help="Runs to show or remove.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """List the runs of the workspace, also those begun and not finished, show one with its settings, or remove some.

    Removing says what else was made from a run, and asks first. What was begun goes with its run.

    Example: `llmemb runs show sasrec-llmemb-42`
    """
    located, settings = open_workspace(output, workspace)
    from llmemb_cli.errors import WrongUseError
    from llmemb_cli.evaluation.catalogue import begun_runs, describe_runs, needed_by, remove_runs
    from llmemb_cli.evaluation.document import check_runs, damaged_runs, known_runs

    begun = begun_runs(located)
    if action == "list":
        if names:
            raise WrongUseError("list takes no names", hint=f"llmemb runs show {' '.join(names)}")
        entries = describe_runs(located, settings, known_runs(located))
        document: dict[str, Any] = {
            "workspace": str(located.root),
            "runs": entries,
            "begun": [*begun.values()],
            "damaged": [
                {"run": name, "message": error.message, "path": str(located.run(name))}
                for name, error in damaged_runs(located).items()
            ],
        }
        output.result(document, lambda console: show_list(console, document))
        return
    if not names:
        raise WrongUseError(f"which run to {action}?", hint=", ".join(check_runs(located, [], begun)))
    unread = damaged_runs(located) if action == "remove" else {}
    chosen = check_runs(located, list(dict.fromkeys(names)), [*begun, *unread])
    if action == "show":
        finished = known_runs(located)
        described = describe_runs(located, settings, [name for name in chosen if name in finished])
        known = begun | {str(entry["run"]): entry for entry in described}
        entries = [known[name] for name in chosen]
        output.result({"workspace": str(located.root), "runs": entries}, lambda console: show_runs(console, entries))
        return
    needs = needed_by(located, chosen)
    for name, users in needs.items():
        for use in users:
            output.reporter().warn(f"{name}: {use}")
    if not yes:
        _confirm(output, chosen)
    with write_lock(located):
        freed = remove_runs(located, chosen)
    removed = {"removed": chosen, "bytes": freed, "needed_by": needs}
    output.result(
        removed, lambda console: console.print(f"removed {', '.join(chosen)}: {freed / 1e6:,.1f} MB", markup=False)
    )


def _confirm(output: Output, names: list[str]) -> None:
    from llmemb_cli.console import may_ask, stderr
    from llmemb_cli.errors import WrongUseError

    if not may_ask(output):
        raise WrongUseError("removing needs a confirmation", hint=f"llmemb runs remove {' '.join(names)} --yes")
    from rich.prompt import Confirm

    if not Confirm.ask(f"Remove {', '.join(names)}?", default=False, console=stderr()):
        raise typer.Exit(1)


def show_list(console: Console, document: dict[str, Any]) -> None:
    """One line a run, and one for each that was begun and not finished, or is damaged."""
    entries, begun, damaged = document["runs"], document["begun"], document["damaged"]
    if not entries and not begun and not damaged:
        console.print("no runs yet: `llmemb rat`")
        return
    rows = [
        {
            "run": entry["run"],
            "valid": "-" if entry["best_validation"] is None else f"{entry['best_validation']:.4f}",
            "time": duration(entry["seconds"]),
            "MB": f"{entry['bytes'] / 1e6:,.1f}",
            "evaluated": " ".join(dict.fromkeys(name.split("-")[0] for name in entry["evaluated"])) or "-",
            "": "" if entry["state"] == "current" else entry["state"].split(":")[0],
        }
        for entry in entries
    ]
    for entry in begun:
        epochs = f"begun, {entry['epochs']} epoch{'' if entry['epochs'] == 1 else 's'}"
        rows.append({"run": entry["run"], "MB": f"{entry['bytes'] / 1e6:,.1f}", "": epochs})
    rows += [{"run": entry["run"], "": "damaged"} for entry in damaged]
    made = _list_table(COLUMNS, rows)
    # A name that is broken over two lines cannot be copied.
    for least in (["MB"], ["MB", "time"], ["MB", "time", "evaluated"]):
        if not fits(console, made):
            made = _list_table([name for name in COLUMNS if name not in least], rows)
    console.print(made)
    if any(entry["state"].startswith("stale:") for entry in entries):
        console.print("stale: would be trained anew now; `llmemb runs show` says why", style="dim")
    if begun:
        console.print("begun: the same command goes on with it; `llmemb runs show` has its settings", style="dim")
    if damaged:
        console.print("damaged: `llmemb runs remove`, and train it again", style="dim")
    console.print("valid: best NDCG@10 on validation items, full ranking; - where there are none", style="dim")


def _list_table(columns: list[str], rows: list[dict[str, str]]) -> Table:
    made = table(columns, [[row.get(name, "-") for name in columns] for row in rows])
    for column in made.columns:
        if column.header in ("evaluated", ""):
            column.justify = "left"
    return made


def show_runs(console: Console, entries: list[dict[str, Any]]) -> None:
    """Everything about each run."""
    for entry in entries:
        rows = [[key, _text(value)] for key, value in entry.items() if key not in ("run", "settings")]
        rows += [[f"rat.{key}", _text(value)] for key, value in entry["settings"].items()]
        console.print(table([entry["run"], ""], rows, left=2))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


app = command(runs)
