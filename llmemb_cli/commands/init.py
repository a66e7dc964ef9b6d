"""`llmemb init`: raw files to a workspace."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from llmemb_cli.commands.common import RecipeOption, SetOption, command, option
from llmemb_cli.commands.data import pairs, show_account, show_attributes, show_sizes
from llmemb_cli.config.data import PREPARATIONS, DataSettings
from llmemb_cli.config.recipes import RECIPES
from llmemb_cli.config.settings import parse_assignments, setting_help
from llmemb_cli.console import Output, duration, may_ask, stderr
from llmemb_cli.datasets.presets import PRESETS, SHOWN, find_preset, is_preset
from llmemb_cli.errors import InterruptedRunError, WrongUseError

OWN = "Own files (custom, sequences)"
KEPT = "What is kept"
SPLIT = "Split into training, validation and test"
PROMPTS = "Attributes in prompts"


def init(
    output: Output,
    dataset: Annotated[
        str | None,
        typer.Argument(
            help=f"Data set: {', '.join(SHOWN)}; or another Amazon category, such as video-games.",
            autocompletion=lambda: list(PRESETS),
        ),
    ] = None,
    source: Annotated[Path | None, option("data.source")] = None,
    edition: Annotated[str | None, option("data.edition")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="|".join(PREPARATIONS),
            help="A whole preparation, said when it is used; other flags override it. paper: LLMEmb's own, with "
            "leaking attributes in prompts; 5-core: users and items with 5 interactions, to a fixed point.",
            autocompletion=lambda: list(PREPARATIONS),
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the workspace directory. [default: the data set's]")
    ] = None,
    path: Annotated[Path | None, typer.Option("--path", help="Directory to make it in. [default: here]")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random. [default: 42]")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a set that is left with fewer than 100 users or items.")
    ] = False,
    recipe: RecipeOption = None,
    set: SetOption = None,
    interactions: Annotated[Path | None, option("data.interactions", panel=OWN)] = None,
    items: Annotated[Path | None, option("data.items", panel=OWN)] = None,
    user_column: Annotated[str | None, option("data.user_column", panel=OWN)] = None,
    item_column: Annotated[str | None, option("data.item_column", panel=OWN)] = None,
    time_column: Annotated[str | None, option("data.time_column", panel=OWN)] = None,
    time_format: Annotated[str | None, option("data.time_format", panel=OWN)] = None,
    rating_column: Annotated[str | None, option("data.rating_column", panel=OWN)] = None,
    title_column: Annotated[str | None, option("data.title_column", panel=OWN)] = None,
    encoding: Annotated[str | None, option("data.encoding", panel=OWN)] = None,
    min_rating: Annotated[float | None, option("data.min_rating", panel=KEPT)] = None,
    start: Annotated[str | None, option("data.start", panel=KEPT)] = None,
    end: Annotated[str | None, option("data.end", panel=KEPT)] = None,
    repeats: Annotated[str | None, option("data.repeats", panel=KEPT)] = None,
    sample: Annotated[float | None, option("data.sample", panel=KEPT)] = None,
    max_users: Annotated[int | None, option("data.max_users", panel=KEPT)] = None,
    filter: Annotated[str | None, option("data.filter", panel=KEPT)] = None,
    min_user: Annotated[int | None, option("data.min_user", panel=KEPT)] = None,
    min_item: Annotated[int | None, option("data.min_item", panel=KEPT)] = None,
    split: Annotated[str | None, option("data.split", panel=SPLIT)] = None,
    valid_from: Annotated[str | None, option("data.valid_from", panel=SPLIT)] = None,
    test_from: Annotated[str | None, option("data.test_from", panel=SPLIT)] = None,
    attributes: Annotated[str | None, option("data.attributes", panel=PROMPTS)] = None,
    leaking: Annotated[
        bool | None,
        typer.Option("--leaking/--no-leaking", help=setting_help("data.leaking"), rich_help_panel=PROMPTS),
    ] = None,
) -> None:
    """Ingest a data set into a new workspace: items, sequences, split and data card.

    Example: `llmemb init ml-100k`, or `llmemb init custom --interactions log.csv --items items.csv`, or
    `llmemb init yelp --source yelp_dataset.tar --preset paper`
    """
    # Flags are called as the settings of [data] that they are.
    given = {key: value for key, value in locals().items() if key in DataSettings.model_fields and value is not None}
    given.pop("dataset", None)
    given |= {key: str(value.resolve()) for key, value in given.items() if isinstance(value, Path)}
    if attributes:
        given["attributes"] = [part.strip() for part in attributes.split(",")]
    if force:
        given["allow_small"] = True
    prepared = _preparation(preset)
    dataset = _dataset(dataset, given, output)
    values = prepared | given
    if may_ask(output):
        values |= _ask_files(dataset, values)
    if dataset == "custom":
        values = _columns(values, output)
    overrides: dict[str, Any] = {} if recipe is None else dict(RECIPES[recipe].settings)
    overrides |= {f"data.{key}": value for key, value in values.items()}
    overrides |= {"data.dataset": dataset, "seed": seed} | parse_assignments(set or [])
    root = (path or Path()) / (name or _default_name(dataset, values))
    if preset:
        output.message(_said(preset, prepared, overrides))

    from llmemb_cli.datasets.create import create_workspace

    written = {f"data.{key}" for key in prepared}
    workspace, result = create_workspace(root, overrides, output.reporter(), written)
    summary = result.manifest["summary"]
    if recipe is not None and not result.built:
        output.message(f"llmemb.toml stays as it is; `llmemb config --recipe {recipe}` changes it")

    def show(console: Any) -> None:
        made = f"made in {duration(result.seconds)}" if result.built else "is up to date"
        console.print(f"workspace {root} {made}", markup=False, soft_wrap=True)
        show_sizes(console, summary)
        show_account(console, summary)
        console.print()
        show_attributes(console, summary)
        quoted = shlex.quote(str(root))
        card = f"llmemb data -w {quoted}, or {shlex.quote(str(root / 'data' / 'card.md'))}"
        console.print(f"\nThe whole card: {card}", markup=False, soft_wrap=True)
        if not summary["attributes"]:
            # There is nothing for a language model to read, which `run` would begin with.
            none = "no texts of items (--items): only `llmemb rat --method none` can be trained"
            console.print(f"{none}\nNext: cd {quoted} && llmemb rat --method none", markup=False, soft_wrap=True)
            return
        if recipe is None:
            other = f"llmemb config -w {quoted} --recipe long-tail"
            console.print(f"Settings are the paper's; best for rare items: {other}", markup=False, soft_wrap=True)
        console.print(f"Next: cd {quoted} && llmemb run", markup=False, soft_wrap=True)

    output.result({"workspace": str(workspace.root), "built": result.built} | summary, show)


def _preparation(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PREPARATIONS:
        raise WrongUseError(f"no preparation {name}", hint=f"--preset {' or '.join(PREPARATIONS)}")
    return dict(PREPARATIONS[name])


def _said(name: str, prepared: dict[str, Any], overrides: dict[str, Any]) -> str:
    """What a preparation sets, and what flags changed of it."""
    parts = []
    for key, value in prepared.items():
        now = overrides[f"data.{key}"]
        parts.append(f"{key} {_word(now)}" + ("" if now == value else f" (instead of {_word(value)})"))
    return f"preset {name}: {', '.join(parts)}"


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _default_name(dataset: str, values: dict[str, Any]) -> str:
    """Own files are called after the file with the interactions."""
    own = values.get("interactions") if dataset == "custom" else None
    return (Path(own).name.split(".")[0] if own else "") or dataset


def _dataset(asked: str | None, given: dict[str, Any], output: Output) -> str:
    if asked is not None and Path(asked).exists() and not is_preset(asked):
        raise WrongUseError(
            "this is a file or folder, not the name of a data set",
            where=asked,
            hint=f"your own table: `llmemb init custom --interactions {asked}`; "
            f"of a known set: `llmemb init NAME --source {asked}`",
        )
    if asked is not None:
        return find_preset(asked).name
    if "interactions" in given:
        return "custom"
    if not may_ask(output):
        raise WrongUseError("which data set?", hint=f"name one of: {', '.join(SHOWN)}; e.g. `llmemb init ml-100k`")
    stderr().print(pairs([(name, PRESETS[name].title) for name in SHOWN]))
    stderr().print("Other Amazon categories too, such as video-games; `amazon` lists them.\n", style="dim")
    while True:
        try:
            return find_preset(_ask("Data set")).name
        except WrongUseError as error:
            Output().error(error)


def _ask_files(dataset: str, values: dict[str, Any]) -> dict[str, str]:
    """Ask for the files that the data set cannot do without; they must be there."""
    preset = PRESETS[dataset]
    needed = "interactions" if "interactions" in preset.uses else "source"
    if preset.assets or preset.categories or needed in values:
        return {}
    if preset.name == "yelp":
        stderr().print(preset.manual, markup=False, style="dim", soft_wrap=True)
    asked = {needed: _ask_path("Where is it" if needed == "source" else "File with the interactions")}
    if "items" in preset.uses and "items" not in values:
        asked["items"] = _ask_path("File with the items (Enter: none)", optional=True)
    return {key: value for key, value in asked.items() if value}


def _ask_path(question: str, *, optional: bool = False) -> str:
    while True:
        answer = _ask(question, default="" if optional else None).strip()
        if answer and Path(answer).expanduser().exists():
            return str(Path(answer).expanduser().resolve())
        if not answer and optional:
            return ""
        Output().error(WrongUseError("no such file or folder", where=answer))


def _columns(values: dict[str, Any], output: Output) -> dict[str, Any]:
    """The columns of own files: named, guessed or asked for."""
    from llmemb_cli.datasets.columns import resolve_custom

    chosen = resolve_custom(values, _ask_column if may_ask(output) else None)
    if not chosen["time_column"]:
        output.message("no column with the time: the lines are taken to be in order (--time-column)")
    return {key: value for key, value in chosen.items() if value != ""}


def _ask_column(kind: str, columns: list[str]) -> str:
    what = kind.removesuffix("_column")
    optional = kind == "time_column"
    known = [*columns, "none"] if optional else columns
    stderr().print(f"The columns are: {', '.join(known)}", markup=False)
    while True:
        answer = _ask(f"Which is the {what}").strip()
        if answer in columns:
            return answer
        if optional and answer == "none":
            return ""
        Output().error(WrongUseError(f"no column {answer}; there are: {', '.join(known)}"))


def _ask(question: str, default: str | None = None) -> str:
    """A line from the terminal.

    Raises:
        InterruptedRunError: there is none (Ctrl-D).
    """
    from rich.prompt import Prompt

    try:
        return Prompt.ask(question, console=stderr(), default=default, show_default=False) or ""
    except EOFError:
        raise InterruptedRunError("no answer", hint="run the same command again, or use flags: see --help") from None


app = command(init)
