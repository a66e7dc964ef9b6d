"""`llmemb export`: the final item table for other systems."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import ForceOption, WorkspaceOption, best_of_runs, command, open_workspace
from llmemb_cli.console import Output, table, titled
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from rich.console import Console

FormatOption = Annotated[
    Literal["parquet", "npy", "safetensors", "word2vec", "usearch", "faiss"],
    typer.Option(
        "--format",
        metavar="NAME",
        help="parquet, npy, safetensors, word2vec; usearch and faiss are ANN indexes (extra `ann`).",
    ),
]
MetricOption = Annotated[
    Literal["ip", "cosine"] | None,
    typer.Option("--metric", help="Of ANN indexes: inner product or cosine [default: what the run scores with]."),
]
DirectoryOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory to write [default: exports/NAME-FORMAT].")
]


def export(
    output: Output,
    name: Annotated[
        str | None, typer.Argument(help="Run, or LLM embeddings (scft, base) [default: the best run].")
    ] = None,
    format: FormatOption = "parquet",
    metric: MetricOption = None,
    out: DirectoryOption = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
) -> None:
    """Write a run's item embeddings in a format that other systems read, with an id table and a card.

    What was written is read back and compared. Ids are your own. `best` is by validation NDCG@10.

    Example: `llmemb export sasrec-llmemb-42 --format faiss`
    """
    located, _ = open_workspace(output, workspace)
    from llmemb_cli.embeddings.export import make_export
    from llmemb_cli.evaluation.document import older_data
    from llmemb_cli.evaluation.spaces import check_space, directory_of

    chosen = check_space(located, name) if name else best_of_runs(output, located)
    source = directory_of(located, chosen)
    if stale := older_data(located, chosen):
        output.reporter().warn(stale)
    # Beside a training, and from a workspace that cannot be written: another directory is not the workspace's.
    outside = out is not None and not out.resolve().is_relative_to(located.root.resolve())
    with nullcontext() if outside else write_lock(located, "exports"):
        result = make_export(located, source, format, output.reporter(), metric=metric, output=out, force=force)
    summary = result.manifest["summary"]
    target = str(out.resolve() if out else located.root / "exports" / f"{source.name}-{format}")
    document = {"export": target, "built": result.built} | summary
    output.result(document, lambda console: show(console, document))


def show(console: Console, document: dict[str, Any]) -> None:
    """What was written, and where."""
    rows = [[entry["name"], f"{entry['bytes']:,}", entry["sha256"][:12]] for entry in document["files"]]
    title = f"{document['source']}: {document['items']:,} items of {document['width']} numbers, {document['format']}"
    titled(console, title, table(["file", "bytes", "sha256"], rows))
    console.print(f"{document['checked']}", markup=False)
    console.print(document["export"], markup=False, soft_wrap=True)


app = command(export)
