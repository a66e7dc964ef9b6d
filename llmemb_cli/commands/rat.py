"""`llmemb rat`: train recommenders and their item embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import cleandoc
from typing import Annotated, Any

import typer

from llmemb_cli.commands.common import (
    ForceOption,
    SetOption,
    WorkspaceOption,
    command,
    open_workspace,
    option,
    parse_seeds,
    split_names,
)
from llmemb_cli.config.backbones import backbones_help
from llmemb_cli.config.methods import methods_help
from llmemb_cli.config.rat import RatSettings
from llmemb_cli.config.runs import plain_name, rat_settings, run_name, without_effect
from llmemb_cli.config.settings import Settings, load_settings
from llmemb_cli.console import Output, table
from llmemb_cli.errors import WrongUseError
from llmemb_cli.peers import Peers, process_rank
from llmemb_cli.progress import Reporter
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.lock import write_lock

# Settings that one backbone, method or loss alone reads are no flags: `llmemb config` lists them, --set changes them.
WHAT, LLMEMB, HOW = "What is trained", "Parts of llmemb (--method llmemb)", "How it is trained"


def rat(
    output: Output,
    backbone: Annotated[str | None, option("rat.backbone", panel=WHAT)] = None,
    method: Annotated[str | None, option("rat.method", panel=WHAT)] = None,
    loss: Annotated[str | None, option("rat.loss", panel=WHAT)] = None,
    negatives: Annotated[int | None, option("rat.negatives", panel=WHAT)] = None,
    similarity: Annotated[str | None, option("rat.similarity", panel=WHAT)] = None,
    logit_adjustment: Annotated[float | None, option("rat.logit_adjustment", panel=WHAT)] = None,
    logit_adjustment_share: Annotated[float | None, option("rat.logit_adjustment_share", panel=WHAT)] = None,
    start_decay: Annotated[float | None, option("rat.start_decay", panel=WHAT)] = None,
    averaging: Annotated[float | None, option("rat.averaging", panel=WHAT)] = None,
    contrast: Annotated[str | None, option("rat.contrast", panel=WHAT)] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Seeds to train, e.g. 42,43,44.", rich_help_panel=WHAT)
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.", rich_help_panel=WHAT)] = None,
    without: Annotated[list[str] | None, option("rat.without", panel=LLMEMB)] = None,
    align_to: Annotated[str | None, option("rat.align_to", panel=LLMEMB)] = None,
    alpha: Annotated[float | None, option("rat.alpha", panel=LLMEMB)] = None,
    gamma: Annotated[float | None, option("rat.gamma", panel=LLMEMB)] = None,
    hidden_size: Annotated[int | None, option("rat.hidden_size", panel=HOW)] = None,
    layers: Annotated[int | None, option("rat.layers", panel=HOW)] = None,
    heads: Annotated[int | None, option("rat.heads", panel=HOW)] = None,
    dropout: Annotated[float | None, option("rat.dropout", panel=HOW)] = None,
    max_length: Annotated[int | None, option("rat.max_length", panel=HOW)] = None,
    batch_size: Annotated[int | None, option("rat.batch_size", panel=HOW)] = None,
    learning_rate: Annotated[float | None, option("rat.learning_rate", panel=HOW)] = None,
    epochs: Annotated[int | None, option("rat.epochs", panel=HOW)] = None,
    patience: Annotated[int | None, option("rat.patience", panel=HOW)] = None,
    compat: Annotated[str | None, option("rat.compat", panel=HOW)] = None,
    device: Annotated[str | None, option("rat.device", panel=HOW)] = None,
    precision: Annotated[str | None, option("rat.precision", panel=HOW)] = None,
    track: Annotated[list[str] | None, option("rat.track")] = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Train a recommender and its item embeddings, and first what the method needs, unless it is there.

    Interrupted, it goes on when run again.

    Example: `llmemb rat --backbone gru4rec --method llmemb`

    Backbones:

    """
    if process_rank():  # process 0 speaks for all
        output.json, output.quiet = False, True
    without, track = split_names(without), split_names(track)
    given = {f"rat.{key}": value for key, value in locals().items() if key in RatSettings.model_fields}
    located, settings = open_workspace(output, workspace, given, set)
    in_file = load_settings(located.settings_file)
    from llmemb_cli.srs.train import run_rat

    if without and settings.rat.method != "llmemb":
        raise WrongUseError("--without leaves out parts of llmemb", hint="add --method llmemb, or leave it out")
    if settings.rat.compat == "official" and settings.rat.backbone == "sasrec":
        output.message("compat official: positions of SASRec see their future", style="yellow")
    idle = without_effect(settings)
    if idle:
        output.message(f"no effect on {plain_name(rat_settings(settings))}: {', '.join(idle)}", style="yellow")
    chosen = parse_seeds(seeds) if seeds else [settings.seed]
    if process_rank():
        _train_along(located, settings, chosen, force, name, in_file)
        return
    if name and len(chosen) > 1:
        raise WrongUseError("--name holds one run, --seeds makes several", hint="leave --name out")
    runs: list[dict[str, Any]] = []
    with write_lock(located), joined(settings) as peers:
        for seed in chosen:
            one = settings.model_copy(update={"seed": seed})
            result = run_rat(located, one, output.reporter(), force=force, name=name, in_file=in_file, peers=peers)
            run = name or run_name(one, in_file)
            runs.append(
                {"run": run, "path": str(located.run(run)), "built": result.built} | result.manifest["summary"]
            )
    rows = [
        [
            str(run["run"]),
            "trained" if run["built"] else "up to date",
            f"{run['epochs']} ({run['best_epoch']})",
            "-" if run["best_validation"] is None else f"{run['best_validation']:.4f}",
            f"{run['parameters']:,}",
        ]
        for run in runs
    ]
    columns = ["run", "", "epochs (best)", "validation NDCG@10", "parameters"]
    output.result({"runs": runs, "no_effect": idle}, lambda console: console.print(table(columns, rows)))


@contextmanager
def joined(settings: Settings) -> Iterator[Peers]:
    """The processes that were started together, as long as they train."""
    from llmemb_cli.peers import join_peers, own_device

    peers = join_peers(own_device(settings.rat.device))
    try:
        yield peers
    finally:
        peers.leave()


def _train_along(
    located: Workspace, settings: Settings, seeds: list[int], force: bool, name: str | None, in_file: Settings
) -> None:
    """The part of the other processes: train, and leave writing and speaking to process 0."""
    from llmemb_cli.srs.train import run_rat

    with joined(settings) as peers:
        for seed in seeds:
            one = settings.model_copy(update={"seed": seed})
            run_rat(located, one, Reporter(), force=force, name=name, in_file=in_file, peers=peers)


rat.__doc__ = f"{cleandoc(rat.__doc__ or '')}\n\n{backbones_help()}\n\nMethods:\n\n{methods_help()}"
app = command(rat)
