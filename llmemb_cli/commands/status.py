"""`llmemb status`: what is done, stale or missing, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from llmemb_cli.chain import StepState, chain, states
from llmemb_cli.commands.common import SetOption, WorkspaceOption, command, open_workspace
from llmemb_cli.config.settings import load_settings
from llmemb_cli.console import Output, table


def status(
    output: Output,
    workspace: WorkspaceOption = None,
    set: SetOption = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 unless all is up to date.")] = False,
) -> None:
    """Show every stage of the workspace: missing, stale or up to date, with the reason.

    Example: `llmemb status --json`
    """
    located, settings = open_workspace(output, workspace, sets=set)
    found = states(chain(located, settings, load_settings(located.settings_file)))
    entries = [describe(entry) for entry in found]
    output.result(
        {"workspace": str(located.root), "stages": entries},
        lambda console: console.print(
            table(["stage", "state", "reason"], [[e["stage"], e["state"], e["reason"]] for e in entries])
        ),
    )
    if exit_code and any(entry["state"] != "up-to-date" for entry in entries):
        raise typer.Exit(1)


def describe(entry: StepState) -> dict[str, str]:
    """A step's state as the JSON contract has it."""
    return {
        "stage": entry.step.name,
        "state": entry.state.state,
        "reason": entry.state.reason,
        "path": str(entry.step.stage.path),
    }


app = command(status)
