"""The Typer app. A command's module is imported only when that command is called or asked for help."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from llmemb_cli import __version__
from llmemb_cli.console import Output, reader_gone
from llmemb_cli.errors import WrongUseError

# name -> (help panel, one line of help); the module is llmemb_cli.commands.<name>, its `app` the command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("Start", "The whole chain on real data, in minutes, on a CPU."),
    "init": ("Start", "Ingest a data set into a new workspace."),
    "data": ("Stages", "Show the data: sizes, popularity curve, groups."),
    "prompt": ("Stages", "Make and preview the item prompts."),
    "scft": ("Stages", "Fine-tune the LLM with LoRA on item prompts (SCFT)."),
    "embed": ("Stages", "LLM embeddings of all items, and their PCA."),
    "rat": ("Stages", "Train a recommender and its item embeddings (RAT)."),
    "tune": ("Stages", "Search settings of the recommender on validation data."),
    "adjust": ("Stages", "Head against tail: a run with another logit adjustment, without training."),
    "eval": ("Stages", "Measure runs, overall and by group."),
    "compare": ("Stages", "Compare runs: seeds, gains, paired tests."),
    "report": ("Stages", "Write one self-contained HTML page."),
    "reproduce": ("Stages", "A table or figure of the paper, as a grid of runs."),
    "export": ("Use", "Write the item table as parquet, npy, safetensors, word2vec or an index."),
    "similar": ("Use", "The items nearest to an item."),
    "recommend": ("Use", "The items a run would show to a user or after a history."),
    "runs": ("Workspace", "List, show and remove runs."),
    "status": ("Workspace", "Which stages are done, stale or missing, and why."),
    "run": ("Workspace", "Run all stages that are not up to date."),
    "config": ("Workspace", "Show the settings and where they come from."),
    "models": ("Machine", "List LLMs: size, licence, memory; fetch one."),
    "doctor": ("Machine", "Check this machine: what is here and what works."),
}


class LazyGroup(TyperGroup):
    """Lists commands from the table above, so that `llmemb --help` imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        panel, help = COMMANDS[cmd_name]
        return TyperCommand(name=cmd_name, help=help, short_help=help, rich_help_panel=panel)

    def main(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """As Typer's; where nobody reads any more, commands and help end alike."""
        try:
            return self._main(args, *rest, **options)
        except SystemExit as ended:
            # Typer and rich make it a failure.
            if not isinstance(ended.__context__, BrokenPipeError):
                raise
            reader_gone()

    def _main(self, args: Any, *rest: Any, **options: Any) -> Any:
        """As Typer's; with --json a wrong command line is said as JSON too, like every other error."""
        given = sys.argv[1:] if args is None else list(args)
        if "--json" not in given:
            return super().main(args, *rest, **options)
        try:
            code = super().main(args, *rest, **{**options, "standalone_mode": False})
        except typer.Abort:
            sys.exit(1)
        except Exception as error:
            # Newer versions of Typer bring a Click of their own, so that the class cannot be named.
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            hint = f"{context.command_path} --help" if context is not None else None
            Output(json=True).error(WrongUseError(error.format_message(), hint=hint))
            sys.exit(getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = load_command(name)
        return name, command, rest


def load_command(name: str) -> Any:
    """The real command behind `name`."""
    module = importlib.import_module(f"llmemb_cli.commands.{name}")
    command = typer.main.get_command(module.app)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    name="llmemb",
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_show_locals=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"llmemb {__version__}")
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Item embeddings from a language model, good for the long tail of sequential recommendation.

    Start with `llmemb demo`, or `llmemb init ml-100k` in a directory of your own.
    """
    if ctx.invoked_subcommand is None:
        from llmemb_cli.commands.start import start

        start(ctx)
