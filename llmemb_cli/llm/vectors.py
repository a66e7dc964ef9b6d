"""Prompts through the LLM to vectors on disk: batches of a token budget, shard by shard, each vector checked."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llmemb_cli.config.settings import Settings
from llmemb_cli.embeddings.table import fill_table
from llmemb_cli.errors import BadDataError, InterruptedRunError, LlmembError
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.llm.attention import use_short_attention
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.memory import out_of_memory
from llmemb_cli.llm.pooling import embed_batch, pad_tokens
from llmemb_cli.llm.prefix import Prefix, compute_prefix, embed_after
from llmemb_cli.progress import Reporter

# Tokens that pass at once unless told. On a CPU few, so that activations stay in its caches: SmolLM2-135M takes 512
# tokens faster than 2,048 (docs/benchmarks.md). A GPU wants many.
AUTO_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 8192}
TOKENISED_AT_ONCE = 16384


@dataclass
class Encoder:
    """A model made ready to export: what every batch needs."""

    loaded: LoadedModel
    pooling: str
    budget: int
    prefix: Prefix | None
    report: Reporter


@dataclass(frozen=True)
class Encoded:
    """Vectors of prompts.

    Attributes:
        vectors: (n, d) float32, mapped from the file of the table.
        cut: rows whose prompt was longer than the limit.
        tokens: real tokens of all prompts after the cut.
        prefix: tokens at their beginning that were computed only once.
    """

    vectors: np.ndarray
    cut: list[int]
    tokens: int
    prefix: int


def encode(
    loaded: LoadedModel, prompts: pl.Series, item_ids: pl.Series, settings: Settings, work: Path, report: Reporter
) -> Encoded:
    """Write the table of all prompts' vectors into `work`, shard by shard so that a crash costs one shard.

    Raises:
        BadDataError: a vector is not finite even in float32, or is zero, or a prompt has no token; names the item.
        InterruptedRunError: a signal came; finished shards are in `work` and the same call goes on.
    """
    limit = settings.scft.max_tokens
    lengths, examples = survey(loaded, prompts, limit)
    bare = np.flatnonzero(lengths == 0)
    if len(bare):
        raise BadDataError(
            f"the tokenizer makes no token of the prompts of {len(bare)} items, for example {item_ids[int(bare[0])]}",
            where=str(loaded.folder),
        )
    order = np.argsort(np.minimum(lengths, limit), kind="stable")
    encoder = make_encoder(loaded, examples, settings, report)
    size = settings.embed.shard_items

    def compute(rows: np.ndarray, stop: StopRequest) -> np.ndarray:
        tokens = tokenise(loaded, prompts.gather(rows).to_list(), limit)
        shard = _encode_shard(encoder, tokens, stop)
        _mend(encoder, shard, tokens, rows, item_ids)
        return shard.numpy()

    vectors = fill_table(
        work,
        item_ids,
        int(loaded.model.config.get_text_config().hidden_size),
        [order[at : at + size] for at in range(0, len(order), size)],
        compute,
        "embed",
        report,
    )
    return Encoded(
        vectors=vectors,
        cut=np.flatnonzero(lengths > limit).tolist(),
        tokens=int(np.minimum(lengths, limit).sum()),
        prefix=0 if encoder.prefix is None else encoder.prefix.length,
    )


def tokenise(loaded: LoadedModel, prompts: list[str], limit: int | None = None) -> list[list[int]]:
    """Token numbers of every prompt, special tokens included, cut at `limit`."""
    encoded = loaded.tokenizer(
        prompts, truncation=limit is not None, max_length=limit, add_special_tokens=True, return_attention_mask=False
    )
    return list(encoded["input_ids"])


def survey(loaded: LoadedModel, prompts: pl.Series, limit: int) -> tuple[np.ndarray, list[list[int]]]:
    """Tokens of every prompt, (n,) int64 and uncut, and some prompts that stand for all.

    Among these are the first and the last in order, which share what all share, the shortest and the longest. All
    token lists at once would take a hundred times the memory of the text.
    """
    lengths = np.empty(len(prompts), dtype=np.int64)
    some: list[list[int]] = []
    for at in range(0, len(prompts), TOKENISED_AT_ONCE):
        tokens = tokenise(loaded, prompts[at : at + TOKENISED_AT_ONCE].to_list())
        lengths[at : at + len(tokens)] = [len(ids) for ids in tokens]
        some += [ids[:limit] for ids in (*tokens[:4], *(pick(tokens, key=len) for pick in (min, max)))]
        some += [min(tokens)[:limit], max(tokens)[:limit]]
        if len(some) > 64:
            some = [min(some), max(some), min(some, key=len), max(some, key=len), *some[:8]]
    return lengths, some


def make_encoder(
    loaded: LoadedModel, tokens: list[list[int]], settings: Settings, report: Reporter, *, use_prefix: bool = True
) -> Encoder:
    """Make a model ready to export `tokens`: no dropout, one precision, the shared beginning computed."""
    loaded.model.train(False)
    if loaded.dtype != torch.float32:
        for name, parameter in loaded.model.named_parameters():
            # What autocast would do at every call; LoRA matrices are float32 for training only.
            if "lora_" in name:
                parameter.data = parameter.data.to(loaded.dtype)
    if loaded.device == "cpu":
        use_short_attention(getattr(loaded.model, "get_base_model", lambda: loaded.model)())
    pooling = settings.scft.pooling
    budget = settings.embed.batch_tokens or AUTO_TOKENS[loaded.device.split(":")[0]]
    prefix = compute_prefix(loaded, tokens, pooling) if use_prefix else None
    return Encoder(loaded, pooling, budget, prefix, report)


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Row numbers of batches: sorted by length, at most `budget` tokens with padding (one row at least)."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > budget:
            batches.append(order[start:end])
            start = end
    return batches


@torch.no_grad()
def _encode_shard(encoder: Encoder, tokens: list[list[int]], stop: StopRequest) -> torch.Tensor:
    lengths = np.array([len(ids) for ids in tokens])
    parts: list[tuple[np.ndarray, torch.Tensor]] = []
    waiting = token_batches(lengths, encoder.budget)[::-1]
    while waiting:
        if stop.requested:
            raise InterruptedRunError("interrupted", hint="run the same command again to go on")
        batch = waiting.pop()
        try:
            parts.append((batch, embed_tokens(encoder, [tokens[i] for i in batch]).cpu()))
            continue
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Here, where the error no longer holds on to what it was computing.
        _make_room(encoder, lengths[batch])
        left = np.concatenate([batch, *waiting])
        waiting = [left[some] for some in token_batches(lengths[left], encoder.budget)][::-1]
    shard = torch.empty(len(tokens), parts[0][1].shape[1])
    for batch, vectors in parts:
        shard[torch.from_numpy(batch)] = vectors
    return shard


def embed_tokens(encoder: Encoder, tokens: list[list[int]]) -> torch.Tensor:
    """(n, d) float32 vectors of one batch, on the model's device."""
    model, device, prefix = encoder.loaded.model, encoder.loaded.device, encoder.prefix
    start = 0 if prefix is None else prefix.length
    ids, mask = pad_tokens([row[start:] for row in tokens], encoder.loaded.tokenizer.pad_token_id)
    if prefix is None:
        return embed_batch(model, ids.to(device), mask.to(device), encoder.pooling)
    return embed_after(model, prefix, ids.to(device), mask.to(device), encoder.pooling)


def _make_room(encoder: Encoder, lengths: np.ndarray) -> None:
    """After running out of memory with prompts of these token counts: let half as much pass from now on.

    Raises:
        LlmembError: it was one prompt already.
    """
    if encoder.loaded.device.startswith("cuda"):
        torch.cuda.empty_cache()
    if len(lengths) == 1:
        raise LlmembError(
            "out of memory with a single prompt",
            hint="a smaller model, --load-in-8bit or --load-in-4bit for SCFT, or a smaller scft.max_tokens",
        ) from None
    encoder.budget = int(lengths.max()) * len(lengths) // 2
    encoder.report.warn(
        f"out of memory with {len(lengths)} prompts at once; going on with {encoder.budget} tokens at most"
    )


def _mend(
    encoder: Encoder, shard: torch.Tensor, tokens: list[list[int]], rows: np.ndarray, item_ids: pl.Series
) -> None:
    """Compute vectors that are not finite again in float32; name the items of those that still are not."""
    bad = torch.nonzero(~torch.isfinite(shard).all(dim=1))[:, 0].tolist()
    if not bad:
        return
    encoder.report.warn(
        f"{len(bad)} vectors are not finite in {encoder.loaded.dtype}; computing them again in float32"
    )
    names = [str(item_ids[int(rows[place])]) for place in bad]
    try:
        shard[bad] = _in_float32(encoder, [tokens[place] for place in bad])
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise LlmembError(
            f"the vectors of {len(bad)} items, for example {names[0]}, are not finite in {encoder.loaded.dtype}, and "
            "memory does not suffice to compute them in float32",
            hint="--precision fp32 on a machine with more memory, or another model",
        ) from None
    still = [name for place, name in zip(bad, names, strict=True) if not torch.isfinite(shard[place]).all()]
    if still:
        raise BadDataError(
            f"the LLM gives no finite vector for {len(still)} items, for example {still[0]}",
            hint="another model, or `llmemb scft` with a lower learning rate",
        )


@torch.no_grad()
def _in_float32(encoder: Encoder, token_lists: list[list[int]]) -> torch.Tensor:
    """(n, d) vectors, one prompt at a time and without a beginning computed ahead."""
    loaded = encoder.loaded
    try:
        # A copy: casting the model itself to float32 and back would round its rotary frequencies.
        model = copy.deepcopy(loaded.model).float()
    except ValueError:
        encoder.report.warn("a model in 8 or 4 bits cannot compute in float32")
        model = loaded.model
    made = []
    for token_list in token_lists:
        ids, mask = pad_tokens([token_list], loaded.tokenizer.pad_token_id)
        made.append(embed_batch(model, ids.to(loaded.device), mask.to(loaded.device), encoder.pooling).cpu())
    return torch.cat(made)
