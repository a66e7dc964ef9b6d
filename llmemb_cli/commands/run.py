"""`llmemb run`: make every stage that is not up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from llmemb_cli.chain import chain, states, variants
from llmemb_cli.commands.common import SetOption, WorkspaceOption, command, open_workspace, short_path
from llmemb_cli.commands.status import describe
from llmemb_cli.config.settings import load_settings
from llmemb_cli.console import Output, duration, table
from llmemb_cli.srs.prepare import check_fit, check_taken
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.stage import readable_manifest


def run(
    output: Output,
    workspace: WorkspaceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which stages would run, and why.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make every stage again.")] = False,
    set: SetOption = None,
) -> None:
    """Run all stages that are not up to date: data, prompt, scft, embed, rat, eval, report.

    Backbones, methods and seeds come from `[run]` in llmemb.toml. Interrupted, it goes on when run again.

    Example: `llmemb run --dry-run`
    """
    located, settings = open_workspace(output, workspace, sets=set)
    for planned in variants(settings):
        # Said now, not after hours of what comes before.
        check_fit(planned)
        if planned.rat.external_vectors and not dry_run:  # which are not made on the way
            check_taken(located, planned.rat.external_vectors)
    steps = chain(located, settings, load_settings(located.settings_file))
    if dry_run:
        entries = [describe(entry) for entry in states(steps)]
        todo = [entry for entry in entries if force or entry["state"] != "up-to-date"]
        rows = [[entry["stage"], entry["state"], entry["reason"]] for entry in todo]
        output.result(
            {"workspace": str(located.root), "would_run": todo},
            lambda console: console.print(
                table(["would run", "state", "why"], rows) if rows else "all is up to date"
            ),
        )
        return
    done = []
    with write_lock(located):
        for step in steps:
            before = readable_manifest(step.stage.path)
            result = step.make(output.reporter(), force)
            built = result.built and (before is None or before["made"] != result.manifest["made"] or force)
            output.message(f"{step.name}: {'done in ' + duration(result.seconds) if built else 'up to date'}")
            done.append({"stage": step.name, "built": built, "seconds": round(result.seconds, 3)})
    made = sum(1 for entry in done if entry["built"])
    output.result(
        {"workspace": str(located.root), "stages": done},
        lambda console: console.print(
            f"{made} of {len(done)} stages run" if made else "all is up to date",
            f"the report: {short_path(located.reports / 'report.html')}; the figures: llmemb compare",
            sep="\n",
            markup=False,
            soft_wrap=True,
        ),
    )


app = command(run)
