"""Bare `llmemb`: where things stand and what comes next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmemb_cli.console import Output, is_live, may_ask, stderr, stdout

if TYPE_CHECKING:
    from llmemb_cli.workspace.locate import Workspace


def start(ctx: typer.Context) -> None:
    """On a terminal with a workspace: its stages, and an offer to run what is missing. Else the help."""
    from llmemb_cli.commands.common import run_guarded
    from llmemb_cli.workspace.locate import Workspace, find_candidates

    found = find_candidates(Path.cwd())
    if len(found) != 1 or not is_live(sys.stdout):
        typer.echo(ctx.get_help())
        return
    run_guarded(Output(), lambda: _offer(Workspace(found[0])))


def _offer(workspace: Workspace) -> None:
    from rich.prompt import Confirm

    from llmemb_cli.chain import chain, states
    from llmemb_cli.config.settings import load_settings
    from llmemb_cli.console import table

    settings = load_settings(workspace.settings_file)
    entries = states(chain(workspace, settings))
    stdout().print(f"workspace {workspace.root.name}", markup=False)
    rows = [[entry.step.name, entry.state.state, entry.state.reason] for entry in entries]
    stdout().print(table(["stage", "state", "reason"], rows))
    todo = [entry.step for entry in entries if entry.state.state != "up-to-date"]
    if not todo:
        stdout().print("All is up to date. `llmemb eval` shows the figures.", markup=False)
        return
    if may_ask(Output()) and Confirm.ask(f"Next: {todo[0].name}. Run it?", default=True, console=stderr()):
        from llmemb_cli.workspace.lock import write_lock

        with write_lock(workspace):
            todo[0].make(Output().reporter(), False)
