"""`llmemb embed`: LLM embeddings of all items and their PCA, and of items that come later."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmemb_cli.commands.common import ForceOption, SetOption, WorkspaceOption, command, open_workspace, option
from llmemb_cli.config.methods import OWN_VECTORS
from llmemb_cli.console import Output, duration
from llmemb_cli.errors import WrongUseError
from llmemb_cli.workspace.lock import write_lock

if TYPE_CHECKING:
    from llmemb_cli.config.settings import Settings
    from llmemb_cli.workspace.locate import Workspace
    from llmemb_cli.workspace.make import StageResult


def embed(
    output: Output,
    without: Annotated[
        Literal["scft"] | None,
        typer.Option("--without", help="scft: the untouched LLM's vectors, kept beside the tuned ones."),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option("--items", help="Embed the items of this file instead, the workspace's own stay as they are."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="With --items or --vectors of new items: also this run's embeddings of them."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Of new items: directory or .parquet file to write; default: new-items/NAME."),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", help="Take vectors made elsewhere from this table or matrix instead."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="With --vectors: what to call them; default: the file's name.")
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            "--ids", help="With --vectors of .npy or .safetensors: the item id of every row, in a list or a table."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Embed part I of N; the last one done merges all.")
    ] = None,
    model: Annotated[str | None, option("scft.model")] = None,
    pooling: Annotated[str | None, option("scft.pooling")] = None,
    pca: Annotated[int | None, option("embed.pca")] = None,
    batch_tokens: Annotated[int | None, option("embed.batch_tokens")] = None,
    precision: Annotated[str | None, option("embed.precision")] = None,
    device: Annotated[str | None, option("embed.device")] = None,
    load_in_8bit: Annotated[bool | None, option("scft.load_in_8bit", "--load-in-8bit")] = None,
    load_in_4bit: Annotated[bool | None, option("scft.load_in_4bit", "--load-in-4bit")] = None,
    workspace: WorkspaceOption = None,
    force: ForceOption = False,
    set: SetOption = None,
) -> None:
    """Embed every item with the LLM, check the vectors, and fit their PCA.

    With --shard several processes or machines that share the workspace embed a part each. With --items vectors of
    items that the workspace has never seen come out of the same prompt, LoRA and PCA, and with --run the adapter.
    --model, --pooling, --load-in-8bit and --load-in-4bit go with --without scft: a tuned LLM has its own.

    With --vectors they come from a file: a column of ids and one of vectors (Parquet, JSON Lines, CSV), word2vec
    text, or a matrix (.npy, .safetensors) with --ids. `--set rat.vectors=NAME` trains on them. With --run
    they are those of new items.

    Example: `llmemb embed`, or `llmemb embed --items new.csv --run sasrec-llmemb-42`, or
    `llmemb embed --vectors encoder.parquet --name encoder`
    """
    given = {"embed.pca": pca, "embed.batch_tokens": batch_tokens, "embed.precision": precision}
    of_llm = {"model": model, "pooling": pooling, "load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    given |= {"embed.device": device} | {f"scft.{key}": value for key, value in of_llm.items()}
    located, settings = open_workspace(output, workspace, given, set)
    if vectors is not None:
        others = {"items": items, "without": without, "shard": shard, "precision": precision} | of_llm
        _refuse_beside_vectors({key for key, value in others.items() if value})
        _embed_external(output, located, settings, vectors, name, ids, run, out, force)
        return
    if name is not None or ids is not None:
        raise WrongUseError("--name and --ids go with --vectors", hint="add --vectors FILE")
    tuned = without is None
    if items is None and shard is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        shard, settings = _share_of_process(settings)
    if items is None and (run is not None or out is not None):
        raise WrongUseError("--run and --out go with --items or --vectors", hint="add --items FILE")
    if items is not None and (pca is not None or precision is not None):
        raise WrongUseError("new items get the PCA and precision of the workspace's own", hint="leave them out")
    if items is not None and shard is not None:
        raise WrongUseError("--shard is for the workspace's own items", hint="leave out --shard, or --items")
    if tuned:
        _check_trained_with(located, of_llm)
    if items is not None:
        _embed_new(output, located, settings, items, out, run, tuned, force)
    elif shard is not None:
        _embed_shard(output, located, settings, _parse_shard(shard), tuned, force)
    else:
        from llmemb_cli.llm.encode import run_embed
        from llmemb_cli.prompts.stage import make_prompts

        with write_lock(located):
            if not tuned:  # else the LLM was tuned on prompts that are there
                make_prompts(located, settings, output.reporter())
            result = run_embed(located, settings, output.reporter(), force=force, tuned=tuned)
        _show(output, located, result, "scft" if tuned else "base")


def _check_trained_with(workspace: Workspace, asked: dict[str, Any]) -> None:
    """The adapter decides which LLM reads the prompts, and how; another choice needs another adapter."""
    from llmemb_cli.workspace.stage import require_stage

    if all(value is None for value in asked.values()):
        return
    trained = require_stage(workspace.scft(), made_by="llmemb scft")["made_from"]["settings"]
    for key, value in asked.items():
        if value is not None and trained[key] != value:
            flag = "--" + key.replace("_", "-")
            words = flag if value is True else f"{flag} {value}"
            raise WrongUseError(
                f"the LLM was fine-tuned with {key} {trained[key]}, {words} does not fit it",
                hint=f"`llmemb scft {words}` first, or --without scft",
            )


def _share_of_process(settings: Settings) -> tuple[str, Settings]:
    """Under `accelerate launch` or `torchrun` each process takes a part, on a GPU of its own where there are any."""
    from llmemb_cli.peers import own_device

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    chosen = settings.embed.model_copy(update={"device": own_device(settings.embed.device)})
    return f"{rank + 1}/{size}", settings.model_copy(update={"embed": chosen})


def _parse_shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise WrongUseError(f"--shard {text}: expected I/N with 1 <= I <= N", hint="for example --shard 1/4")
    return int(number), int(of)


def _embed_shard(
    output: Output, workspace: Workspace, settings: Settings, shard: tuple[int, int], tuned: bool, force: bool
) -> None:
    from llmemb_cli.llm.encode import merge_parts, run_part

    number, of = shard
    report = output.reporter()
    merged, missing = (None, [number]) if force else merge_parts(workspace, settings, report, of, tuned)
    if merged is None and number in missing:
        with write_lock(workspace, f"embed-{number}-of-{of}"):
            run_part(workspace, settings, report, number, of, force=force, tuned=tuned)
        merged, missing = merge_parts(workspace, settings, report, of, tuned)
    if merged is not None:
        _show(output, workspace, merged, "scft" if tuned else "base")
        return
    waiting = ", ".join(f"{other}/{of}" for other in missing)
    document = {"shard": f"{number}/{of}", "merged": False, "missing": missing}
    output.result(document, lambda console: console.print(f"part {number}/{of} is done; not yet: {waiting}"))


def _embed_new(
    output: Output,
    workspace: Workspace,
    settings: Settings,
    items: Path,
    out: Path | None,
    run: str | None,
    tuned: bool,
    force: bool,
) -> None:
    from llmemb_cli.new_items import embed_new_items

    with write_lock(workspace):
        result, path = embed_new_items(
            workspace, settings, items, output.reporter(), out=out, run=run, tuned=tuned, force=force
        )
    _show_new(output, result, path, items)


def _show_new(output: Output, result: StageResult, path: Path, items: Path) -> None:
    summary = result.manifest["summary"]
    document = {"path": str(path), "built": result.built} | summary
    line = f"{summary['items']:,} items of {items.name}, {summary['known']:,} of them known to the workspace"
    output.result(document, lambda console: console.print(f"{line}: {path}", soft_wrap=True))
    if summary.get("bias") is not None:
        output.message(f"scores of {summary['run']} add a bias to each item: {summary['bias']:.4f} to these")


def _refuse_beside_vectors(flags: set[str]) -> None:
    """The LLM's flags say nothing of vectors made elsewhere."""
    if flags:
        names = ", ".join(sorted("--" + flag.replace("_", "-") for flag in flags))
        raise WrongUseError(f"no effect on vectors made elsewhere: {names}", hint="leave it out")


def _embed_external(
    output: Output,
    workspace: Workspace,
    settings: Settings,
    vectors: Path,
    name: str | None,
    ids: Path | None,
    run: str | None,
    out: Path | None,
    force: bool,
) -> None:
    if run is None and out is not None:
        raise WrongUseError("--out goes with new items", hint="add --run RUN, whose embeddings they are to have")
    if run is not None and name is not None:
        raise WrongUseError("--name is for the workspace's own items", hint="leave out --name, or --run")
    if run is not None:
        from llmemb_cli.new_items import map_external_items

        with write_lock(workspace):
            result, path = map_external_items(
                workspace, settings, vectors, output.reporter(), ids=ids, run=run, out=out, force=force
            )
        _show_new(output, result, path, vectors)
        return
    from llmemb_cli.embeddings.external import name_for, take_vectors

    chosen = name_for(vectors, name)
    with write_lock(workspace):
        result = take_vectors(workspace, settings, vectors, output.reporter(), name=chosen, ids=ids, force=force)
    _show(output, workspace, result, chosen)
    output.message(f"train on them: llmemb rat --method llm2x --set rat.vectors={chosen}")


def _show(output: Output, workspace: Workspace, result: StageResult, kind: str) -> None:
    summary = result.manifest["summary"]
    path = workspace.embeddings(kind)
    document: dict[str, Any] = {"path": str(path), "built": result.built, "seconds": result.manifest["seconds"]}
    done = "embedded" if kind in OWN_VECTORS else "taken"
    how = f"{done} in {duration(result.seconds)}" if result.built else "up to date"
    line = f"{how}: {summary['items']:,} items, {summary['width']} numbers each; PCA to {summary['pca']} "
    line += f"keeps {summary['explained']:.1%} of the variance"
    output.result(document | summary, lambda console: console.print(line))


app = command(embed)
