"""A tiny random Llama with a tokenizer of whole words, and a workspace with prompts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.config.settings import Settings, make_settings, write_settings
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import make_prompts
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import run_stage
from llmemb_cli.workspace.stage import Stage

WORDS = ["title", "is", "genre", "year", ";", *(f"w{i}" for i in range(40))]


def make_tiny(folder: Path, *, seed: int = 0, hidden_size: int = 64, extra_words: int = 0) -> Path:
    """Two layers, saved with safetensors and tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    names = ["<unk>", "<pad>", *WORDS, *(f"extra{i}" for i in range(extra_words))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


def with_prompts(
    root: Path, model: Path, *, items: int = 30, instruction: str = "", **overrides: Any
) -> tuple[Workspace, Settings]:
    """A workspace with items of three attributes and their prompts; `overrides` are settings of `[scft]`."""
    root.mkdir(parents=True)
    workspace = Workspace(root)
    values = {"model": str(model), "precision": "fp32", "device": "cpu", "batch_size": 8, "steps": 6}
    chosen = {f"scft.{key}": value for key, value in (values | overrides).items()}
    settings = make_settings(chosen | {"embed.precision": "fp32", "embed.device": "cpu"})
    write_settings(workspace.settings_file, settings)

    def build(work: Path) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        text = [" ".join(f"w{i}" for i in rng.integers(40, size=int(rng.integers(1, 9)))) for _ in range(items)]
        year = [f"w{i % 7}" for i in range(items)]
        frame = pl.DataFrame({"item_id": [f"i{n}" for n in range(items)], "title": text, "genre": text[::-1]})
        frame.with_columns(pl.Series("year", year)).write_parquet(work / "items.parquet")
        return {"instruction": instruction, "attributes": ["title", "genre", "year"]}

    run_stage(Stage("data", workspace.data, 1, {}), build)
    make_prompts(workspace, settings, Reporter())
    return workspace, settings
