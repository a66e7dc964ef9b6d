"""`llmemb embed`: LLM embeddings of all items and their PCA."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.console import Output, duration
from llmemb_cli.workspace.lock import write_lock


def embed(
    output: Output,
    without: Annotated[
        Literal["scft"] | None,
        typer.Option("--without", help="scft: the untouched LLM's vectors, kept beside the tuned ones."),
    ] = None,
    pca: Annotated[int | None, option("embed.pca")] = None,
    batch_tokens: Annotated[int | None, option("embed.batch_tokens")] = None,
    precision: Annotated[str | None, option("embed.precision")] = None,
    device: Annotated[str | None, option("embed.device")] = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Embed every item with the LLM, check the vectors, and fit their PCA.

    Example: `llmemb embed` or `llmemb embed --without scft`
    """
    given = {"embed.pca": pca, "embed.batch_tokens": batch_tokens, "embed.precision": precision}
    located, settings = open_workspace(output, workspace, given | {"embed.device": device}, set)
    from llmemb_cli.llm.encode import run_embed

    with write_lock(located):
        result = run_embed(located, settings, output.reporter(), force=force, tuned=without is None)
    summary = result.manifest["summary"]
    path = located.embeddings("scft" if without is None else "base")
    document = {"path": str(path), "built": result.built, "seconds": result.manifest["seconds"]} | summary
    how = f"embedded in {duration(result.seconds)}" if result.built else "up to date"
    line = f"{how}: {summary['items']:,} items, {summary['width']} numbers each; PCA to {summary['pca']} "
    line += f"keeps {summary['explained']:.1%} of the variance"
    output.result(document, lambda console: console.print(line))


app = command(embed)
