"""What every command shares: common options, settings as options, errors and exit codes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llmemb_cli.config.recipes import RECIPES, RecipeName
from llmemb_cli.config.settings import Settings, load_settings, parse_assignments, setting_choices, setting_help
from llmemb_cli.console import Output
from llmemb_cli.errors import InterruptedRunError, LlmembError, WrongUseError
from llmemb_cli.interrupt import terminate_as_interrupt
from llmemb_cli.workspace.locate import Workspace, find_candidates, find_workspace, is_workspace

WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="Workspace directory.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override any setting, e.g. rat.alpha=0.05; repeatable."),
]
RecipeOption = Annotated[
    RecipeName | None,
    typer.Option(
        "--recipe",
        help="Write settings that go together into llmemb.toml. "
        + " ".join(f"{name}: {recipe.about}." for name, recipe in RECIPES.items()),
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Make it again even if nothing changed.")]

# Longer lists of choices would leave the help no room on a terminal of 80 columns.
WIDEST_CHOICES = 24

_OUTPUT = {
    "json": typer.Option("--json", help="Print one JSON document on stdout and nothing else."),
    "quiet": typer.Option("--quiet", "-q", help="No progress and no messages."),
    "debug": typer.Option("--debug", help="Show the traceback of an error."),
}


def option(path: str, *names: str, panel: str | None = None) -> Any:
    """A Typer option for the setting `path` ("scft.loss"), with the setting's own help, default and choices."""
    flag = "--" + path.split(".")[1].replace("_", "-")
    choices = setting_choices(path)
    shown = "|".join(choices)
    return typer.Option(
        *(names or (flag,)),
        help=setting_help(path),
        show_default=False,
        metavar=shown if 0 < len(shown) <= WIDEST_CHOICES else None,
        autocompletion=(lambda: choices) if choices else None,
        rich_help_panel=panel,
    )


def split_names(values: list[str] | None) -> list[str] | None:
    """The values of a repeatable option, each of which may hold several with commas between; None without any."""
    return [one.strip() for value in values or [] for one in value.split(",") if one.strip()] or None


def command(function: Callable[..., None]) -> typer.Typer:
    """Make a Typer app of one command out of `function(output, ...)`.

    Adds --json, --quiet and --debug as `output`, and turns errors into messages and exit codes.
    """

    @functools.wraps(function)
    def run(**values: Any) -> None:
        output = Output(json=values.pop("json"), quiet=values.pop("quiet"), debug=values.pop("debug"))
        run_guarded(output, lambda: function(output, **values))

    signature = inspect.signature(function, eval_str=True)
    parameters = [p for name, p in signature.parameters.items() if name != "output"]
    for name, spec in _OUTPUT.items():
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, spec])
        )
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(
        context_settings={"help_option_names": ["--help", "-h"]},
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.command()(run)
    return app


def run_guarded(output: Output, action: Callable[[], None]) -> None:
    """Run `action`; show an expected error kindly and exit with its code.

    Raises:
        typer.Exit: with the exit code of DESIGN section 4, after an error.
    """
    try:
        with terminate_as_interrupt():
            action()
    except LlmembError as error:
        if output.debug:
            raise
        output.error(error)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        if output.debug:
            raise
        output.error(InterruptedRunError("interrupted", hint="run the same command again to go on"))
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if output.debug:
            raise
        output.error(
            LlmembError(
                f"unexpected {type(error).__name__}: {error}",
                hint="run again with --debug for the traceback and report it; nothing finished is lost",
            )
        )
        raise typer.Exit(1) from None


def open_workspace(
    output: Output,
    workspace: Path | None,
    overrides: dict[str, Any] | None = None,
    sets: list[str] | None = None,
) -> tuple[Workspace, Settings]:
    """The workspace a command works in (said on stderr) and its settings with the overrides of this call."""
    from llmemb_cli.console import may_ask

    if workspace is None and may_ask(output):
        found = find_candidates(Path.cwd())
        if len(found) > 1:
            workspace = _choose(found)
    located = find_workspace(workspace)
    output.message(f"workspace {short_path(located.root)}", style="dim")
    # A flag that was not given must not hide a --set of the same setting.
    flags = {key: value for key, value in (overrides or {}).items() if value is not None}
    settings = load_settings(located.settings_file, parse_assignments(sets or []) | flags)
    return located, settings


def warn_of_damaged(output: Output, workspace: Workspace) -> None:
    """Say which runs a command over all runs leaves out, because their manifest cannot be read."""
    from llmemb_cli.evaluation.document import damaged_runs

    for error in damaged_runs(workspace).values():
        output.reporter().warn(f"left out: {error.message} ({error.hint})")


def best_of_runs(output: Output, workspace: Workspace, *, trained: bool = False) -> str:
    """The best run where none was named (`best_run`); says which are left out."""
    from llmemb_cli.evaluation.spaces import best_run

    warn_of_damaged(output, workspace)
    return best_run(workspace, trained=trained)


def _choose(found: list[Path]) -> Path:
    from rich.prompt import Prompt

    from llmemb_cli.console import stderr

    name = Prompt.ask("Which workspace?", choices=[path.name for path in found], console=stderr())
    return next(path for path in found if path.name == name)


def short_path(path: Path) -> str:
    """From the current directory where it is below it."""
    try:
        return str(path.relative_to(Path.cwd())) if path != Path.cwd() else "."
    except ValueError:
        return str(path)


__all__ = [
    "ForceOption",
    "RecipeOption",
    "SetOption",
    "WorkspaceOption",
    "best_of_runs",
    "command",
    "is_workspace",
    "open_workspace",
    "option",
    "run_guarded",
    "short_path",
    "split_names",
    "warn_of_damaged",
]


def parse_seeds(text: str) -> list[int]:
    """The seeds of `--seeds 42,43`, each once.

    Raises:
        WrongUseError: they are no whole numbers of 0 or more.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise WrongUseError(f"--seeds {text}: whole numbers of 0 or more, separated by commas, are expected")
    return list(dict.fromkeys(map(int, parts)))
