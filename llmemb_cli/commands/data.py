"""`llmemb data`: what the workspace's data is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmemb_cli.commands.common import WorkspaceOption, command, open_workspace
from llmemb_cli.console import Output, table
from llmemb_cli.workspace.stage import require_stage

if TYPE_CHECKING:
    from rich.console import Console

BAR = 40


def data(output: Output, workspace: WorkspaceOption = None) -> None:
    """Show the data: sizes, source, what was left out, popularity of items.

    Example: `llmemb data --json`
    """
    located, _ = open_workspace(output, workspace)
    summary = require_stage(located.data, made_by="llmemb init")["summary"]
    output.result({"workspace": str(located.root)} | summary, lambda console: show_data(console, summary))


def show_data(console: Console, summary: dict[str, Any]) -> None:
    """Draw the sizes and the popularity histogram."""
    tail = summary["tail"]
    rows = [
        ["users", f"{summary['users']:,}"],
        ["items", f"{summary['items']:,}"],
        ["interactions", f"{summary['interactions']:,}"],
        ["density", f"{summary['density']:.3%}"],
        ["mean length", f"{summary['mean_length']:.2f}"],
        ["dates", f"{summary['first']} to {summary['last']}"],
        ["edition", summary["source"]["edition"]],
        ["tail", f"{tail['items']:,} items with at most {tail['largest_count']} training interactions"],
        ["tail's share of test targets", f"{tail['share_of_test']:.1%}"],
        ["lines rejected", f"{summary['rejected']:,}"],
        ["rows left out by rules", f"{sum(summary['left_out'].values()):,}"],
    ]
    console.print(table([summary["dataset"], ""], rows))
    most = max((entry["items"] for entry in summary["popularity"]), default=1) or 1
    console.print("Items by training interactions")
    for entry in summary["popularity"]:
        bar = "#" * round(BAR * entry["items"] / most)
        console.print(f"  {entry['bin']:>5} {entry['items']:>8,} {bar}", markup=False)
    for reason, count in summary["rejected_by_reason"].items():
        console.print(f"  rejected {count:,}: {reason}", markup=False)
    for rule, count in summary["left_out"].items():
        console.print(f"  left out {count:,}: {rule}", markup=False)


app = command(data)
