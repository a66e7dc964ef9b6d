"""`llmemb init`: raw files to a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmemb_cli.commands.common import SetOption, command, option
from llmemb_cli.commands.data import show_data
from llmemb_cli.config.data import PREPARATIONS
from llmemb_cli.config.settings import parse_assignments, setting_help
from llmemb_cli.console import Output, duration, may_ask, stderr
from llmemb_cli.datasets.presets import PRESETS, SHOWN, find_preset
from llmemb_cli.errors import WrongUseError


def init(
    output: Output,
    dataset: Annotated[
        str | None,
        typer.Argument(help="Data set: " + ", ".join(SHOWN) + "; or any Amazon category, such as video-games."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the workspace directory.")] = None,
    path: Annotated[Path | None, typer.Option("--path", help="Directory to make it in; default: here.")] = None,
    source: Annotated[Path | None, option("data.source")] = None,
    edition: Annotated[str | None, option("data.edition")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="A whole preparation: " + ", ".join(PREPARATIONS) + "; other flags override it."
        ),
    ] = None,
    interactions: Annotated[Path | None, option("data.interactions")] = None,
    items: Annotated[Path | None, option("data.items")] = None,
    user_column: Annotated[str | None, option("data.user_column")] = None,
    item_column: Annotated[str | None, option("data.item_column")] = None,
    time_column: Annotated[str | None, option("data.time_column")] = None,
    rating_column: Annotated[str | None, option("data.rating_column")] = None,
    title_column: Annotated[str | None, option("data.title_column")] = None,
    encoding: Annotated[str | None, option("data.encoding")] = None,
    attributes: Annotated[str | None, option("data.attributes")] = None,
    leaking: Annotated[bool | None, typer.Option("--leaking/--no-leaking", help=setting_help("data.leaking"))] = None,
    min_rating: Annotated[float | None, option("data.min_rating")] = None,
    start: Annotated[str | None, option("data.start")] = None,
    end: Annotated[str | None, option("data.end")] = None,
    repeats: Annotated[str | None, option("data.repeats")] = None,
    max_users: Annotated[int | None, option("data.max_users")] = None,
    sample: Annotated[float | None, option("data.sample")] = None,
    filter: Annotated[str | None, option("data.filter")] = None,
    min_user: Annotated[int | None, option("data.min_user")] = None,
    min_item: Annotated[int | None, option("data.min_item")] = None,
    split: Annotated[str | None, option("data.split")] = None,
    valid_from: Annotated[str | None, option("data.valid_from")] = None,
    test_from: Annotated[str | None, option("data.test_from")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random. [default: 42]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Accept fewer than 100 users or items.")] = False,
    set: SetOption = None,
) -> None:
    """Ingest a data set into a new workspace: items, sequences, split and data card.

    Example: `llmemb init ml-100k`, or `llmemb init custom --interactions log.csv --items items.csv`
    """
    from llmemb_cli.datasets.columns import resolve_custom
    from llmemb_cli.datasets.create import create_workspace

    if dataset is None:
        dataset = "custom" if interactions else _ask_dataset(output)
    dataset = find_preset(dataset).name
    values: dict[str, Any] = {
        **_preparation(preset),
        **{
            key: value
            for key, value in {
                "source": _absolute(source),
                "interactions": _absolute(interactions),
                "items": _absolute(items),
                "edition": edition,
                "user_column": user_column,
                "item_column": item_column,
                "time_column": time_column,
                "rating_column": rating_column,
                "title_column": title_column,
                "encoding": encoding,
                "attributes": [part.strip() for part in attributes.split(",")] if attributes else None,
                "leaking": leaking,
                "min_rating": min_rating,
                "start": start,
                "end": end,
                "repeats": repeats,
                "max_users": max_users,
                "sample": sample,
                "filter": filter,
                "min_user": min_user,
                "min_item": min_item,
                "split": split,
                "valid_from": valid_from,
                "test_from": test_from,
                "allow_small": True if force else None,
            }.items()
            if value is not None
        },
    }
    if dataset == "custom":
        values = resolve_custom(values, _ask_column if may_ask(output) else None)
    overrides = {f"data.{key}": value for key, value in values.items() if value not in (None, "")}
    overrides |= {"data.dataset": dataset, "seed": seed} | parse_assignments(set or [])
    default = interactions.name.split(".")[0] if dataset == "custom" and interactions else dataset
    root = (path or Path.cwd()) / (name or default)
    workspace, result = create_workspace(root, overrides, output.reporter())
    summary = result.manifest["summary"]

    def show(console: Any) -> None:
        if result.built:
            console.print(f"workspace {root.name} made in {duration(result.seconds)}")
        else:
            console.print(f"workspace {root.name} is up to date")
        show_data(console, summary)
        console.print(f"Next: cd {root.name} && llmemb run", markup=False)

    output.result({"workspace": str(workspace.root), "built": result.built} | summary, show)


def _preparation(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PREPARATIONS:
        raise WrongUseError(f"no preparation {name}", hint=f"--preset {' or '.join(PREPARATIONS)}")
    return dict(PREPARATIONS[name])


def _absolute(path: Path | None) -> str | None:
    return str(path.resolve()) if path else None


def _ask_dataset(output: Output) -> str:
    if not may_ask(output):
        raise WrongUseError("which data set?", hint=f"name one of: {', '.join(SHOWN)}; e.g. `llmemb init ml-100k`")
    from rich.prompt import Prompt

    for name in SHOWN:
        stderr().print(f"  {name}: {PRESETS[name].title}", markup=False)
    stderr().print("  or another Amazon category, such as video-games", markup=False)
    return Prompt.ask("Which data set?", console=stderr())


def _ask_column(kind: str, columns: list[str]) -> str:
    from rich.prompt import Prompt

    what = kind.removesuffix("_column")
    optional = kind == "time_column"
    choices = [*columns, *(["none"] if optional else [])]
    answer = Prompt.ask(f"Which column is the {what}?", choices=choices, console=stderr())
    return "" if optional and answer == "none" else answer


app = command(init)
