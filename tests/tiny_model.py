"""Tiny random models with a tokenizer of whole words, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["title", "is", "genre", "year", ";", *(f"w{i}" for i in range(40))]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def word_tokenizer(folder: Path, words: list[str] = WORDS, *, pad: str | None = "<pad>") -> None:
    """Save a tokenizer of whole words: <unk>, <pad>, then `words`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token=pad).save_pretrained(folder)


def tiny_llama(
    folder: Path, *, seed: int = 0, shard: str | None = None, words: list[str] = WORDS, **config: Any
) -> Path:
    """Save a random Llama of two layers; `shard` ("40KB") cuts its weights into several files."""
    from transformers import LlamaConfig, LlamaModel

    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer(folder, words)
    torch.manual_seed(seed)
    numbers = {"vocab_size": len(words) + 2, "num_key_value_heads": 1, **SIZES} | config
    model = LlamaModel(LlamaConfig(**numbers))
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


def tiny_bert(folder: Path, *, positions: int = 40) -> Path:
    """Save a random BERT of two layers."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer(folder)
    torch.manual_seed(0)
    numbers = {"vocab_size": len(WORDS) + 2, "max_position_embeddings": positions, **SIZES}
    BertModel(BertConfig(**numbers)).save_pretrained(folder)
    return folder
