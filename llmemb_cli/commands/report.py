"""`llmemb report`: one self-contained HTML page."""

from __future__ import annotations

from llmemb_cli.commands.common import (
    ForceOption,
    SetOption,
    WorkspaceOption,
    command,
    open_workspace,
    warn_of_damaged,
)
from llmemb_cli.console import Output
from llmemb_cli.workspace.lock import write_lock


def report(
    output: Output, workspace: WorkspaceOption = None, force: ForceOption = False, set: SetOption = None
) -> None:
    """Write reports/report.html: data, results by group, training curves, prompts, a map of the items.

    The page needs no network and shows whatever stages are there.

    Example: `llmemb report`
    """
    located, settings = open_workspace(output, workspace, sets=set)
    from llmemb_cli.reporting.page import make_report

    warn_of_damaged(output, located)
    with write_lock(located):
        result = make_report(located, settings, output.reporter(), force=force)
    path = located.reports / "report.html"
    output.result(
        {"report": str(path), "built": result.built},
        lambda console: console.print(str(path), markup=False, soft_wrap=True),
    )


app = command(report)
