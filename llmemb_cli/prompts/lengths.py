"""How long prompts are in tokens, and which a model cuts off."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from llmemb_cli.progress import Reporter

BINS = 10
TOKENISED_AT_ONCE = 16384


def token_lengths(tokenizer: Any, prompts: pl.Series, report: Reporter) -> np.ndarray:
    """Tokens of every prompt, special tokens included: (n,) int64.

    Some thousand at a time: all token lists at once would take a hundred times the memory of the text.
    """
    lengths = np.empty(len(prompts), dtype=np.int64)
    with report.task("counting tokens", len(prompts), "prompts") as task:
        for at in range(0, len(prompts), TOKENISED_AT_ONCE):
            texts = prompts[at : at + TOKENISED_AT_ONCE].to_list()
            encoded = tokenizer(texts, add_special_tokens=True, return_attention_mask=False)["input_ids"]
            lengths[at : at + len(texts)] = [len(ids) for ids in encoded]
            task.advance(len(texts))
    return lengths


def describe_lengths(lengths: np.ndarray, limit: int) -> dict[str, Any]:
    """Mean, quantiles, a histogram of about ten bins of equal width, and how many are longer than `limit`."""
    low, high = int(lengths.min()), int(lengths.max())
    width = max(-(-(high - low + 1) // BINS), 1)
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, bins=edges)
    last = int(np.flatnonzero(counts)[-1])
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": float(np.quantile(lengths, 0.95)),
        "max": high,
        "total": int(lengths.sum()),
        "limit": limit,
        "cut": int((lengths > limit).sum()),
        "cut_share": float((lengths > limit).mean()),
        "histogram": [
            {"from": int(edges[i]), "to": int(edges[i + 1]) - 1, "items": int(counts[i])} for i in range(last + 1)
        ],
    }
