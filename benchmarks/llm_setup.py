"""What the benchmarks of the language model share: texts, models of random weights, the machine's matrix rate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.assets.architecture import Architecture, read_architecture
from llmemb_cli.devices import cpu_has_bf16
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.quiet import quiet_transformers
from llmemb_cli.llm.trainer import Items
from llmemb_cli.progress import Reporter

INSTRUCTION = "The beauty item has the following attributes:"
WORDS = ["cream", "serum", "shampoo", "brush", "nail", "hair", "skin", "face", "oil", "gel", "spray", "soft"]
RANDOM = {
    "tiny": Architecture("llama", 64, 2, 128, 2, 1, 32, 49152, 2048),
    "1b": Architecture("llama", 2048, 16, 8192, 32, 8, 64, 49152, 8192),
}


def read_items(data: Path | None, limit: int) -> Items:
    """Items of `data` (a folder with items.parquet, or that file), or made-up ones; `limit` of them at random."""
    rng = np.random.default_rng(0)
    if data is None:
        rows = [(" ".join(rng.choice(WORDS, 12)), " ".join(rng.choice(WORDS, 6))) for _ in range(limit or 4096)]
        names = ["title", "keywords"]
    else:
        frame = pl.read_parquet(data / "items.parquet" if data.is_dir() else data)
        names = [name for name in frame.columns if name != "item_id"]
        rows = frame.select(names).rows()
    parts = [[f"{name} is {value}" for name, value in zip(names, row, strict=True) if value] for row in rows]
    chosen = rng.permutation(len(parts))[: limit or None]
    parts = [parts[row] for row in chosen]
    prompts = [f"{INSTRUCTION}\n" + "; ".join(texts) for texts in parts]
    return Items(pl.Series(parts), pl.Series(prompts), INSTRUCTION, "; ")


def random_model(size: str, folder: Path, tokenizer_of: str | None) -> Path:
    """Save a Llama of random weights, which do not matter to speed, with the tokenizer of a model that is here.

    Without one it gets a tokenizer of the words of made-up items, and nothing has to be fetched.
    """
    from transformers import AutoModel, LlamaConfig

    from llmemb_cli.assets.models import local_model
    from llmemb_cli.llm.load import load_tokenizer

    numbers = RANDOM[size]
    config = LlamaConfig(
        vocab_size=numbers.vocabulary,
        hidden_size=numbers.hidden,
        intermediate_size=numbers.intermediate,
        num_hidden_layers=numbers.layers,
        num_attention_heads=numbers.heads,
        num_key_value_heads=numbers.kv_heads,
        head_dim=numbers.head_dim,
        max_position_embeddings=numbers.positions,
    )
    torch.manual_seed(0)
    with quiet_transformers():
        AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        tokenizer = load_tokenizer(local_model(tokenizer_of, Reporter())) if tokenizer_of else word_tokenizer()
        tokenizer.save_pretrained(folder)
    return folder


def word_tokenizer() -> Any:
    """A tokenizer of whole words and signs: those of made-up items."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<pad>", *WORDS, "title", "keywords", "is", ";", ":", *INSTRUCTION.rstrip(":").split()]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


def without_template(loaded: LoadedModel, folder: Path) -> Path:
    """The model's files without its chat template.

    With one, sentence-transformers wraps every text into a dialogue: other texts, and more of them.
    """
    folder.mkdir()
    for file in loaded.folder.iterdir():
        if file.suffix == ".safetensors" or file.name in ("config.json", "model.safetensors.index.json"):
            (folder / file.name).symlink_to(file.resolve())
    template, loaded.tokenizer.chat_template = loaded.tokenizer.chat_template, None
    loaded.tokenizer.save_pretrained(folder)
    loaded.tokenizer.chat_template = template
    return folder


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    size = 8192 if device.startswith("cuda") else 2048
    if device == "cpu" and dtype != torch.float32 and not cpu_has_bf16():
        size = 128  # multiplied number by number, which takes minutes for larger ones
    one = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(5):
        synchronise(device)
        started = time.perf_counter()
        for _ in range(4):
            one @ one
        synchronise(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - started))
    return best


def operations_a_token(loaded: LoadedModel) -> int:
    """Operations of a token in the blocks' linear layers, forwards: two a weight. Attention itself is left out."""
    config = getattr(loaded.model, "get_base_model", lambda: loaded.model)().config
    return 2 * read_architecture(config.to_dict()).linear


def synchronise(device: str) -> None:
    """Wait until a card has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
