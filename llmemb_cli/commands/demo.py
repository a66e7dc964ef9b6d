"""`llmemb demo`: real ratings in, item embeddings and a comparison out, on a CPU, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmemb_cli.commands.common import command
from llmemb_cli.console import Output, duration, table

if TYPE_CHECKING:
    from rich.console import Console

# Chosen for two CPU cores: most of the time goes to the LLM, and the recommenders stop early.
COMMON = {
    "data.dataset": "ml-100k",
    "scft.model": "smollm2-135m",
    "scft.max_tokens": 64,
    "scft.learning_rate": 5e-4,
    "scft.warmup": 0.05,
    # Few steps cannot overfit, and dropout costs memory; validation before and after is enough here.
    "scft.lora_dropout": 0.0,
    "scft.validate_every": 1000,
    "rat.max_length": 50,
    "rat.dropout": 0.3,
    "rat.alpha": 0.1,
    "rat.patience": 10,
}
FULL = COMMON | {"scft.steps": 45, "scft.batch_size": 32, "rat.epochs": 80}
QUICK = COMMON | {"scft.steps": 8, "scft.batch_size": 16, "rat.epochs": 20}


def demo(
    output: Output,
    quick: Annotated[bool, typer.Option("--quick", help="At most 3 minutes instead of 12.")] = False,
    path: Annotated[
        Path | None, typer.Option("--path", help="Workspace to make; default: ./llmemb-demo (or -quick).")
    ] = None,
) -> None:
    """The whole chain on real data: MovieLens-100K and SmolLM2-135M, from ratings to a table and a report.

    Two SASRec models are trained, one with its own item embeddings (`none`) and one with those of the LLM
    (`llmemb`), and compared overall and on the tail. Interrupted, it goes on when run again; a second run
    shows the table at once.

    Example: `llmemb demo --quick`
    """
    from llmemb_cli.chain import chain
    from llmemb_cli.config.settings import load_settings
    from llmemb_cli.datasets.create import create_workspace
    from llmemb_cli.evaluation.document import eval_document
    from llmemb_cli.workspace.lock import write_lock

    root = path or Path.cwd() / ("llmemb-demo-quick" if quick else "llmemb-demo")
    output.message(f"demo in {root}: real data, a real LLM, a CPU; about {'3' if quick else '12'} minutes")
    workspace, _ = create_workspace(root, QUICK if quick else FULL, output.reporter())
    settings = load_settings(workspace.settings_file)
    stages, built = [], False
    with write_lock(workspace):
        for step in chain(workspace, settings):
            result = step.make(output.reporter(), False)
            built |= result.built
            output.message(f"{step.name}: {'done in ' + duration(result.seconds) if result.built else 'up to date'}")
            stages.append(
                {
                    "stage": step.name,
                    "seconds": result.manifest["seconds"],
                    "peak_memory_mb": result.manifest["peak_memory_mb"],
                }
            )
    if not built:
        output.message("all is up to date")
    report = workspace.reports / "report.html"
    document = eval_document(workspace, settings) | {"stages": stages, "report": str(report)}
    output.result(document, lambda console: _show(console, document))


def _show(console: Console, document: dict[str, Any]) -> None:
    """The comparison, then the time and memory of each stage."""
    rows = []
    for run in document["runs"]:
        groups = {group["name"]: group for group in run["groups"]["popularity"]}
        parts = [run["overall"], groups["tail"], groups["head"]]
        rows.append([run["run"], *(f"{part[metric]:.4f}" for part in parts for metric in ("HR@10", "NDCG@10"))])
    first = document["runs"][0]
    sizes = {group["name"]: group["n"] for group in first["groups"]["popularity"]}
    kind = first["protocol"]["kind"]
    title = f"{first['overall']['n']} test users, {sizes['tail']} with a tail target, {kind} ranking"
    columns = ["run", *(f"{part} {metric}" for part in ("all", "tail", "head") for metric in ("HR@10", "NDCG@10"))]
    console.print(table(columns, rows, title=title))
    console.print(
        table(
            ["stage", "time", "peak memory"],
            [[s["stage"], duration(s["seconds"]), f"{s['peak_memory_mb']:,} MB"] for s in document["stages"]],
        )
    )
    console.print(f"Report: {document['report']}", markup=False, soft_wrap=True)


app = command(demo)
