"""Embedding export: every item's prompt through the LLM to one checked vector, then PCA. Whole, or in parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.assets.identity import model_identity
from llmemb_cli.assets.models import local_model
from llmemb_cli.config.settings import Settings
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import CUT, finish_table, forget_progress, keep_table, open_rows, read_table
from llmemb_cli.errors import BadDataError
from llmemb_cli.llm.adapter import attach_adapter
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.vectors import encode, token_batches
from llmemb_cli.pipeline import embed_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.lock import write_lock
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.rows import blocks
from llmemb_cli.workspace.stage import Stage, require_stage, stage_state
from llmemb_cli.workspace.store import read_json, write_json

__all__ = ["merge_parts", "open_llm", "run_embed", "run_part", "token_batches"]
READ = ["item_id", "prompt"]
_READING = ("model", "pooling", "max_tokens", "load_in_8bit", "load_in_4bit")  # which LLM reads prompts, and how
MERGE_SECONDS = 3600.0


def run_embed(
    workspace: Workspace, settings: Settings, report: Reporter, force: bool = False, tuned: bool = True
) -> StageResult:
    """Embed all items with the tuned LLM (`embeddings/scft`), or with the untouched one (`embeddings/base`).

    Raises:
        WrongUseError: prompts or the tuned LLM have not been made.
        BadDataError: a vector is not finite even in float32; names the item.
        InterruptedRunError: a signal came; finished shards are kept and the same call goes on.
    """
    settings, adapter = resolve(workspace, settings, tuned)
    if not force and stage_state(embed_stage(workspace, settings, tuned=tuned)).state == "up-to-date":
        return run_stage(embed_stage(workspace, settings, tuned=tuned), lambda work: {}, report=report)
    fetch_llm(settings, adapter, report)
    stage = embed_stage(workspace, settings, tuned=tuned)
    device = pick_device(settings.embed.device)

    def build(work: Path) -> dict[str, Any]:
        kept = None if force else keep_table(stage, work, report)
        if kept is None:
            frame, _ = read_prompts(workspace, READ)
            kept = _embed(workspace, frame, settings, adapter, device, work, report)
        vectors, summary = kept
        return summary | _with_pca(work, vectors, settings, report)

    return run_stage(stage, build, force=force, report=report, device=device)


def resolve(workspace: Workspace, settings: Settings, tuned: bool) -> tuple[Settings, Path | None]:
    """The settings to embed with, and the adapter, if one is wanted.

    Raises:
        WrongUseError: the tuned LLM has not been made.
    """
    if not tuned:
        return settings, None
    manifest = require_stage(workspace.scft(), made_by="llmemb scft")
    return as_made(settings, manifest["made_from"]), workspace.scft()


def fetch_llm(settings: Settings, adapter: Path | None, report: Reporter) -> None:
    """Have the model here before the stage is described: its manifest then says which weights it was made from.

    Raises:
        MissingError: it cannot be had.
        BadDataError: the adapter was trained on other weights than the model has now.
    """
    local_model(settings.scft.model, report)
    if adapter is None:
        return
    trained_on = require_stage(adapter, made_by="llmemb scft")["made_from"]["files"].get("model", {}).get("sha256")
    now = model_identity(settings.scft.model).get("sha256")
    if None not in (trained_on, now) and trained_on != now:
        raise BadDataError(
            f"the adapter was trained on other weights than {settings.scft.model} has now",
            hint="run `llmemb scft` again, or put the old weights back",
        )


def as_made(settings: Settings, made_from: dict[str, Any]) -> Settings:
    """`settings` with the model and reading of prompts that an adapter or vectors were made with.

    `llmemb scft --model X` followed by a plain `llmemb embed` must not put X's adapter on another model. A model that
    lies at another place since is read there.
    """
    made = {name: made_from["settings"][name] for name in _READING}
    weights = made_from["files"].get("model", {}).get("sha256")
    named = settings.scft.model
    # In this order: the hash is worked out only where it decides.
    if made["model"] != named and weights is not None and model_identity(named).get("sha256") == weights:
        made["model"] = named
    return settings.model_copy(update={"scft": settings.scft.model_copy(update=made)})


def open_llm(settings: Settings, adapter: Path | None, device: str, report: Reporter) -> LoadedModel:
    """The LLM that embeds, with its adapter if there is one."""
    loaded = load_model(settings.scft, report, precision=settings.embed.precision, device=device)
    if adapter is not None:
        attach_adapter(loaded, adapter)
    return loaded


def _embed(
    workspace: Workspace,
    frame: pl.DataFrame,
    settings: Settings,
    adapter: Path | None,
    device: str,
    work: Path,
    report: Reporter,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Write the table of the items in `frame` and give its vectors and what the manifest says of them."""
    loaded = open_llm(settings, adapter, device, report)
    done = encode(loaded, frame["prompt"], frame["item_id"], settings, work, report)
    cut = frame["item_id"].gather(done.cut).to_list()
    note_cut(work, cut, settings, report)
    return done.vectors, {
        "items": len(frame),
        "width": done.vectors.shape[1],
        "model": settings.scft.model,
        "tuned": adapter is not None,
        "pooling": settings.scft.pooling,
        "cut": len(cut),
        "tokens": done.tokens,
        "shared_prefix": done.prefix,
        "precision": str(loaded.dtype).removeprefix("torch."),
    }


def note_cut(work: Path, cut: list[str], settings: Settings, report: Reporter) -> None:
    """List the items whose prompts were cut in `cut.json`, and say how many there are."""
    if cut:
        write_json(work / CUT, cut)
        report.warn(f"{len(cut)} prompts are longer than {settings.scft.max_tokens} tokens and were cut: {CUT}")


def _with_pca(work: Path, vectors: np.ndarray, settings: Settings, report: Reporter) -> dict[str, Any]:
    pca = fit_pca(vectors, settings.embed.pca, report)
    write_pca(work, pca)
    forget_progress(work)
    explained = float(pca.explained_variance.sum() / max(pca.total_variance, 1e-30))
    return {"pca": len(pca.components), "explained": min(explained, 1.0)}


def part_stage(workspace: Workspace, settings: Settings, tuned: bool, number: int, of: int) -> Stage:
    """Part `number` of `of` of an export: its own directory, and the settings of the whole."""
    whole = embed_stage(workspace, settings, tuned=tuned)
    path = whole.path.parent / f"{whole.path.name}.parts" / f"{number}-of-{of}"
    return replace(whole, name="embed part", path=path, settings=dict(whole.settings) | {"part": [number, of]})


def run_part(
    workspace: Workspace,
    settings: Settings,
    report: Reporter,
    number: int,
    of: int,
    force: bool = False,
    tuned: bool = True,
) -> StageResult:
    """Embed every `of`-th item, beginning with item `number` (1-based), for `merge_parts` to put together.

    Raises:
        as `run_embed`.
    """
    settings, adapter = resolve(workspace, settings, tuned)
    fetch_llm(settings, adapter, report)
    device = pick_device(settings.embed.device)

    def build(work: Path) -> dict[str, Any]:
        frame = read_prompts(workspace, READ)[0].gather_every(of, number - 1)
        if frame.is_empty():
            raise BadDataError(f"there are fewer items than {of} parts")
        _, summary = _embed(workspace, frame, settings, adapter, device, work, report)
        forget_progress(work)
        return summary

    stage = part_stage(workspace, settings, tuned, number, of)
    return run_stage(stage, build, force=force, report=report, device=device)


def merge_parts(
    workspace: Workspace, settings: Settings, report: Reporter, of: int, tuned: bool = True
) -> tuple[StageResult | None, list[int]]:
    """Put the parts of an export together, if all are there and made from what the whole would be made from.

    Returns:
        The result, or None and the numbers of the parts that are missing.

    Raises:
        BadDataError: parts were computed in different precisions.
    """
    settings, _ = resolve(workspace, settings, tuned)
    whole = embed_stage(workspace, settings, tuned=tuned)
    stages = [part_stage(workspace, settings, tuned, number, of) for number in range(1, of + 1)]
    missing = _missing(stages)
    if missing:
        done = stage_state(whole).state == "up-to-date"
        return (run_stage(whole, lambda work: {}, report=report), []) if done else (None, missing)
    # Parts that end at the same time both come here: one merges, the other finds it done.
    with write_lock(workspace, wait=MERGE_SECONDS):
        force = not _missing(stages)
        build = _merge(workspace, settings, report, stages) if force else lambda work: {}
        result = run_stage(whole, build, force=force, report=report)
        shutil.rmtree(stages[0].path.parent, ignore_errors=True)
    return result, []


def _missing(stages: list[Stage]) -> list[int]:
    return [number for number, stage in enumerate(stages, start=1) if stage_state(stage).state != "up-to-date"]


def _merge(
    workspace: Workspace, settings: Settings, report: Reporter, stages: list[Stage]
) -> Callable[[Path], dict[str, Any]]:
    """What writes the whole from its parts, after a look at whether they belong together."""
    of = len(stages)
    summaries = [require_stage(stage.path, made_by="llmemb embed --shard")["summary"] for stage in stages]
    if len({summary["precision"] for summary in summaries}) > 1:
        found = ", ".join(sorted({summary["precision"] for summary in summaries}))
        raise BadDataError(
            f"the parts were computed in different precisions: {found}",
            where=str(stages[0].path.parent),
            hint="give every part the same --precision, and --force those that differ",
        )

    def build(work: Path) -> dict[str, Any]:
        item_ids = read_prompts(workspace, ["item_id"])[0]["item_id"]
        tables = [read_table(stage.path) for stage in stages]
        cut: list[str] = []
        for number, (stage, table) in enumerate(zip(stages, tables, strict=True)):
            if not table.item_ids.equals(item_ids.gather_every(of, number)):
                raise BadDataError("a part has other items than it should", where=str(stage.path))
            cut += read_json(stage.path / CUT) if (stage.path / CUT).is_file() else []
        with open_rows(work, len(item_ids), summaries[0]["width"]) as file:
            for number, table in enumerate(tables):
                rows = np.arange(number, len(item_ids), of)
                for some in blocks(*table.vectors.shape):
                    file.write(rows[some], table.vectors[some])
        vectors = finish_table(work, item_ids)
        note_cut(work, cut, settings, report)
        counts = {key: sum(summary[key] for summary in summaries) for key in ("items", "cut", "tokens")}
        return summaries[0] | counts | _with_pca(work, vectors, settings, report) | {"parts": of}

    return build
