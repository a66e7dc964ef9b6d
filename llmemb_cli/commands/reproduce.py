"""`llmemb reproduce`: a table or figure of the paper as a grid of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import SetOption, command, parse_seeds
from llmemb_cli.console import Output, duration, fits, table, titled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llmemb_cli.reporting.grid import Cell

TargetArgument = Annotated[
    Literal["table1", "table2", "fig4", "fig5", "fig6"], typer.Argument(help="Table or figure of the paper.")
]
Workspaces = Annotated[
    list[Path] | None,
    typer.Option("--workspace", "-w", help="Workspace; repeatable, one a data set.", show_default=False),
]
Names = list[str] | None


def reproduce(
    output: Output,
    target: TargetArgument,
    workspaces: Workspaces = None,
    backbone: Annotated[Names, typer.Option(help="Backbone; repeatable [default: the paper's].")] = None,
    method: Annotated[Names, typer.Option(help="Method; repeatable [default: all].")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas.")] = "42,43,44",
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="sampled|full",
            help="Rank among sampled items, as the paper, or among all [default: sampled].",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs trained at once, a process each.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs and how long they may take; times a few steps.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the result [default: reproduce/ in the first workspace]."),
    ] = None,
    set: SetOption = None,
) -> None:
    """Train and measure what a table or figure of the paper needs, and put the result beside the paper's figures.

    Runs that are up to date are kept; interrupted, it goes on when run again; a run that fails does not stop the
    others. Ranking is sampled, as in the paper, unless --protocol full. The result says cell by cell how far ours is
    from the paper's, and whether its claims, who beats whom, hold here.

    Example: `llmemb reproduce table1 --seeds 42 --dry-run`
    """
    from llmemb_cli.commands.common import open_workspace
    from llmemb_cli.config.settings import parse_assignments
    from llmemb_cli.workspace.locate import Workspace

    overrides: dict[str, Any] = {"eval.protocol": "sampled"} | parse_assignments(set or [])
    overrides |= {} if protocol is None else {"eval.protocol": protocol}
    _check_overrides(overrides)
    located: list[Workspace] = []
    paths: list[Path | None] = [*workspaces] if workspaces else [None]
    for path in paths:
        one, _ = open_workspace(output, path, overrides)
        located.append(one)
    from llmemb_cli.reporting.reproduce import grid_of, idle_settings, known, reproduce_document, unfit_pairs

    _check(backbone, known("backbone"), "--backbone")
    _check(method, known("method"), "--method")
    cells = grid_of(target, located, parse_seeds(seeds), backbones=backbone, methods=method, overrides=overrides)
    notes = [f"left out: {b} with {m}: {why}" for (b, m), why in unfit_pairs(target, backbone, method).items()]
    if idle := idle_settings(cells):
        notes.append(f"no effect on any run: {', '.join(idle)}")
    for text in notes:
        output.reporter().warn(text)
    if dry_run:
        document = _plan(target, cells, jobs) | {"notes": notes}
        output.result(document, lambda console: show_plan(console, document))
        return
    from llmemb_cli.reporting.grid import run_grid

    run_grid(cells, output.reporter(), jobs)
    document = reproduce_document(target, cells)
    document["notes"] = notes + document["notes"]
    folder = out or located[0].root / "reproduce"
    _write(folder, document)
    output.result(document, lambda console: show(console, document, folder))
    if document["failed"]:
        raise typer.Exit(1)


def _check_overrides(overrides: dict[str, Any]) -> None:
    from llmemb_cli.errors import WrongUseError

    instead = {
        "rat.backbone": "take --backbone",
        "rat.method": "take --method",
        "rat.without": "table2 leaves each part out",
        "seed": "take --seeds",
    }
    for key in overrides:
        if key in instead:
            raise WrongUseError(f"--set {key} has no effect on a grid", hint=instead[key])
        if not key.startswith(("rat.", "eval.")):
            raise WrongUseError(
                f"--set {key}: only settings of [rat] and [eval] can be changed for a grid",
                hint="data, prompts and LLM are shared by all runs: change llmemb.toml",
            )


def _check(given: Names, known: list[str], flag: str) -> None:
    from llmemb_cli.errors import WrongUseError, near_match

    for name in given or []:
        if name not in known:
            close = near_match(name, known)
            raise WrongUseError(
                f"{flag} {name}: no such {flag[2:]}", hint=f"did you mean {close}?" if close else ", ".join(known)
            )


def _write(folder: Path, document: dict[str, Any]) -> None:
    from llmemb_cli.reporting.reproduce_text import markdown
    from llmemb_cli.workspace.store import write_json, write_text

    write_json(folder / f"{document['target']}.json", document)
    write_text(folder / f"{document['target']}.md", markdown(document))


def _plan(target: str, cells: list[Cell], jobs: int) -> dict[str, Any]:
    from llmemb_cli.reporting.estimate import estimate
    from llmemb_cli.reporting.grid import is_done, steps_before

    done = {id(cell): is_done(cell) for cell in cells}
    waiting = [cell for cell in cells if not done[id(cell)]]
    guesses = {id(cell): guess for cell, guess in zip(waiting, estimate(waiting), strict=True)}
    first: dict[str, list[str]] = {}
    for cell in waiting:
        for step in steps_before(cell):
            names = first.setdefault(str(cell.workspace.root), [])
            names += [step.name] if step.name not in names else []
    known = [guess for guess in guesses.values() if guess is not None]
    entries = []
    for cell in cells:
        guess = guesses.get(id(cell))
        entries.append(
            cell.describe()
            | {
                "status": "up-to-date" if done[id(cell)] else "waiting",
                "estimate": guess.seconds if guess else None,
                "estimated_from": guess.source if guess else None,
            }
        )
    return {
        "target": target,
        "jobs": jobs,
        "runs": entries,
        "first": first,
        "to_do": len(waiting),
        "unknown": len(waiting) - len(known),
        "estimate": sum(one.seconds for one in known) / jobs if known else None,
        "at_most": any(one.source == "steps" for one in known),
    }


def show_plan(console: Console, document: dict[str, Any]) -> None:
    """The runs and what they may cost."""
    from llmemb_cli.evaluation.evaluated import home_names

    names = home_names(Path(entry["workspace"]) for entry in document["runs"])
    rows = [
        [
            names[Path(entry["workspace"])],
            entry["run"],
            entry["status"],
            _guess(entry),
        ]
        for entry in document["runs"]
    ]
    console.print(table(["workspace", "run", "state", "estimate"], rows, left=3))
    if not document["to_do"]:
        console.print("all runs are up to date")
        return
    known = document["estimate"]
    how = "at most" if document["at_most"] else "about"
    time = "nothing to estimate from" if known is None else f"{how} {duration(known)} with {document['jobs']} at once"
    unlike = f"; {document['unknown']} cannot be estimated" if known is not None and document["unknown"] else ""
    console.print(f"{document['to_do']} of {len(rows)} runs to do: {time}{unlike}", soft_wrap=True)
    if document["at_most"]:
        console.print(
            "at most: a few steps were timed, times all epochs; training that stops early takes a part of that",
            soft_wrap=True,
        )
    for root, steps in document["first"].items():
        console.print(f"before them, not in the estimate: {', '.join(steps)} in {names[Path(root)]}", soft_wrap=True)


def _guess(entry: dict[str, Any]) -> str:
    if entry["estimate"] is None:
        return "" if entry["status"] == "up-to-date" else "?"
    return ("at most " if entry["estimated_from"] == "steps" else "") + duration(entry["estimate"])


def show(console: Console, document: dict[str, Any], folder: Path) -> None:
    """Figures by workspace and backbone, then the claims."""
    from llmemb_cli.reporting.reproduce_text import blocks, summary_line

    about = "ours, with the paper's and ours / the paper's where there is a source"
    for title, rows in blocks(document).items():
        parts = list(dict.fromkeys(row["part"] for row in rows))
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        # All in one table, or one a part, or one a figure: the first that the terminal is wide enough for.
        whole = [[(part, metric) for part in parts for metric in metrics]]
        for columns in (whole, [[(part, metric) for metric in metrics] for part in parts]):
            made = [_figures(rows, some) for some in columns]
            if all(fits(console, one) for one in made):
                break
        else:
            made = [_figures(rows, [column]) for column in whole[0]]
        for number, one in enumerate(made):
            titled(console, f"{title}: {about}" if number == 0 else title, one)
    if document["claims"]:
        for title, rows_ in _claims(document).items():
            head, body = _filled(["figure", "compared", "ours", "paper", "verdict"], rows_)
            titled(console, f"{title}: does it come out as in the paper?", table(head, body, left=2))
        console.print(summary_line(document), soft_wrap=True)
    for entry in document["failed"]:
        console.print(
            f"failed: {entry['run']}: {(entry['error'] or {}).get('message')}", markup=False, soft_wrap=True
        )
    console.print(str(folder / f"{document['target']}.md"), markup=False, soft_wrap=True)


def _figures(rows: list[dict[str, Any]], columns: list[tuple[str, str]]) -> Table:
    from llmemb_cli.reporting.reproduce_text import cell_text, variant_name

    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in rows:
        cells.setdefault(variant_name(row), {})[row["part"], row["metric"]] = cell_text(row)
    head = ["method", *(f"{part} {metric}" for part, metric in columns)]
    return table(head, [[name, *(found.get(column, "") for column in columns)] for name, found in cells.items()])


def _claims(document: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Rows of the claims by workspace and backbone; a star stands for significant."""
    from llmemb_cli.reporting.reproduce_text import claim_rows

    found: dict[str, list[list[str]]] = {}
    for where, *cells, verdict in claim_rows(document):
        short = verdict.replace(", not significantly", "").replace(", significantly", " *")
        found.setdefault(where, []).append([*cells, short])
    return found


def _filled(head: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that have anything in them."""
    kept = [at for at in range(len(head)) if any(row[at] for row in rows)]
    return [head[at] for at in kept], [[row[at] for at in kept] for row in rows]


app = command(reproduce)
