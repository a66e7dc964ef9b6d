"""Embedding export: every item's prompt through the LLM to one checked vector, then PCA."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.assets.identity import model_identity
from llmemb_cli.assets.models import local_model
from llmemb_cli.config.settings import Settings
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import EmbeddingTable, write_table
from llmemb_cli.errors import BadDataError, InterruptedRunError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.llm.adapter import attach_adapter
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.pooling import embed_batch, pad_tokens
from llmemb_cli.pipeline import embed_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import StageResult, require_stage, run_stage
from llmemb_cli.workspace.store import read_tensors, write_json, write_tensors

SHARDS = "shards"


def run_embed(
    workspace: Workspace, settings: Settings, report: Reporter, force: bool = False, tuned: bool = True
) -> StageResult:
    """Embed all items with the tuned LLM (`embeddings/scft`), or with the untouched one (`embeddings/base`).

    Raises:
        WrongUseError: prompts or the tuned LLM have not been made.
        BadDataError: a vector is not finite even in float32; names the item.
        InterruptedRunError: a signal came; finished shards are kept and the same call goes on.
    """
    adapter = workspace.scft() if tuned else None
    if adapter is not None:
        manifest = require_stage(adapter, made_by="llmemb scft")
        settings = as_trained(settings, manifest["made_from"]["settings"])
    # Fetched before the stage is described: its manifest then says which weights it was made from.
    local_model(settings.scft.model, report)
    if adapter is not None:
        _check_base(manifest, settings)
    stage = embed_stage(workspace, settings, tuned=tuned)
    device = pick_device(settings.embed.device)

    def build(work: Path) -> dict[str, Any]:
        frame, _ = read_prompts(workspace)
        loaded = load_model(settings.scft, report, precision=settings.embed.precision, device=device)
        if adapter is not None:
            attach_adapter(loaded, adapter)
        vectors, cut = encode(loaded, frame["prompt"].to_list(), frame["item_id"], settings, work, report)
        table = EmbeddingTable(frame["item_id"], vectors)
        write_table(work, table)
        if cut:
            write_json(work / "cut.json", [str(frame["item_id"][row]) for row in cut])
            report.warn(
                f"{len(cut)} prompts are longer than {settings.scft.max_tokens} tokens and were cut: cut.json"
            )
        pca = fit_pca(vectors, settings.embed.pca, report, settings.seed)
        write_pca(work, pca)
        shutil.rmtree(work / SHARDS)
        return {
            "items": len(frame),
            "width": vectors.shape[1],
            "pca": len(pca.components),
            "explained": float(pca.explained_variance.sum() / max(pca.total_variance, 1e-30)),
            "model": settings.scft.model,
            "tuned": tuned,
            "pooling": settings.scft.pooling,
            "cut": len(cut),
            "precision": str(loaded.dtype).removeprefix("torch."),
        }

    return run_stage(stage, build, force=force, report=report, device=device)


def _check_base(manifest: dict[str, Any], settings: Settings) -> None:
    """Refuse an adapter whose base model has been replaced by other weights of the same shapes."""
    trained_on = manifest["made_from"]["files"].get("model", {}).get("sha256")
    now = model_identity(settings.scft.model).get("sha256")
    if None not in (trained_on, now) and trained_on != now:
        raise BadDataError(
            f"the adapter was trained on other weights than {settings.scft.model} has now",
            hint="run `llmemb scft` again, or put the old weights back",
        )


def as_trained(settings: Settings, trained: dict[str, Any]) -> Settings:
    """`settings` with the model and reading of prompts that the adapter was trained with.

    `llmemb scft --model X` followed by a plain `llmemb embed` must not put X's adapter on another model.
    """
    names = ("model", "pooling", "max_tokens", "load_in_8bit", "load_in_4bit")
    scft = settings.scft.model_copy(update={name: trained[name] for name in names})
    return settings.model_copy(update={"scft": scft})


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Row numbers of batches: sorted by length, at most `budget` tokens with padding (one row at least)."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > budget:
            batches.append(order[start:end])
            start = end
    return batches


def encode(
    loaded: LoadedModel, prompts: list[str], item_ids: pl.Series, settings: Settings, work: Path, report: Reporter
) -> tuple[np.ndarray, list[int]]:
    """Vectors of all prompts, shard by shard so that a crash costs one shard.

    Returns:
        (n, d) float32 and the rows whose prompt was cut.
    """
    limit = settings.scft.max_tokens
    tokens = loaded.tokenizer(prompts, add_special_tokens=True)["input_ids"]
    cut = [row for row, ids in enumerate(tokens) if len(ids) > limit]
    if cut:
        tokens = loaded.tokenizer(prompts, truncation=True, max_length=limit)["input_ids"]
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    (work / SHARDS).mkdir(exist_ok=True)
    loaded.model.train(False)
    vectors: np.ndarray | None = None
    size = settings.embed.shard_items
    with StopRequest() as stop, report.task("embed", len(prompts), "items") as task:
        for number, at in enumerate(range(0, len(order), size)):
            rows = order[at : at + size]
            path = work / SHARDS / f"{number:06d}.safetensors"
            if not path.is_file():
                shard = _encode_shard(loaded, [tokens[r] for r in rows], settings, stop)
                _mend(loaded, shard, [tokens[r] for r in rows], rows, item_ids, settings, report)
                write_tensors(path, {"vectors": shard})
            part = read_tensors(path)["vectors"].numpy()
            if vectors is None:
                vectors = np.empty((len(prompts), part.shape[1]), dtype=np.float32)
            vectors[rows] = part
            task.advance(len(rows))
    assert vectors is not None
    return vectors, cut


@torch.no_grad()
def _encode_shard(
    loaded: LoadedModel, tokens: list[list[int]], settings: Settings, stop: StopRequest
) -> torch.Tensor:
    lengths = np.array([len(ids) for ids in tokens])
    parts: list[tuple[np.ndarray, torch.Tensor]] = []
    for batch in token_batches(lengths, settings.embed.batch_tokens):
        if stop.requested:
            raise InterruptedRunError("interrupted", hint="run the same command again to go on")
        ids, mask = pad_tokens([tokens[i] for i in batch], loaded.tokenizer.pad_token_id)
        with torch.autocast(loaded.device.split(":")[0], dtype=loaded.dtype, enabled=loaded.dtype != torch.float32):
            vectors = embed_batch(loaded.model, ids.to(loaded.device), mask.to(loaded.device), settings.scft.pooling)
        parts.append((batch, vectors.cpu()))
    shard = torch.empty(len(tokens), parts[0][1].shape[1])
    for batch, vectors in parts:
        shard[torch.from_numpy(batch)] = vectors
    return shard


def _mend(
    loaded: LoadedModel,
    shard: torch.Tensor,
    tokens: list[list[int]],
    rows: np.ndarray,
    item_ids: pl.Series,
    settings: Settings,
    report: Reporter,
) -> None:
    """Compute vectors that are not finite again in float32; name the items of those that still are not."""
    bad = torch.nonzero(~torch.isfinite(shard).all(dim=1))[:, 0].tolist()
    if not bad:
        return
    report.warn(f"{len(bad)} vectors are not finite in {loaded.dtype}; computing them again in float32")
    try:
        # A copy: casting the model itself to float32 and back would round its rotary frequencies and LoRA weights.
        model = copy.deepcopy(loaded.model).float()
    except ValueError:
        report.warn("a model in 8 or 4 bits cannot compute in float32")
        model = loaded.model
    for place in bad:
        ids, mask = pad_tokens([tokens[place]], loaded.tokenizer.pad_token_id)
        with torch.no_grad():
            device = loaded.device
            shard[place] = embed_batch(model, ids.to(device), mask.to(device), settings.scft.pooling)[0].cpu()
    still = [str(item_ids[int(rows[place])]) for place in bad if not torch.isfinite(shard[place]).all()]
    if still:
        raise BadDataError(
            f"the LLM gives no finite vector for {len(still)} items, for example {still[0]}",
            hint="another model, or `llmemb scft` with a lower learning rate",
        )
