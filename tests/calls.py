"""Commands as a person calls them on a workspace, for tests."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from llmemb_cli.app import app
from llmemb_cli.workspace.locate import Workspace


def call(workspace: Workspace, *args: str) -> Result:
    """`llmemb ARGS -w WORKSPACE`."""
    return CliRunner().invoke(app, [*args, "-w", str(workspace.root)])


def document(workspace: Workspace, *args: str) -> Any:
    """What the command, which must not fail, prints with --json."""
    done = call(workspace, *args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
