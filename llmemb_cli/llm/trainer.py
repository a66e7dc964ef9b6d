"""What a step of SCFT works on: items, model, temperature, and how texts become vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch

from llmemb_cli.config.scft import ScftSettings
from llmemb_cli.errors import BadDataError
from llmemb_cli.llm.fastlora import DropoutPool
from llmemb_cli.llm.load import LoadedModel
from llmemb_cli.llm.plan import MicroBatches
from llmemb_cli.llm.pooling import embed_batch, pad_tokens
from llmemb_cli.llm.prefix import LEAST_TOKENS, common_prefix, compute_prefix, embed_after, read_beginning
from llmemb_cli.peers import ALONE, Peers
from llmemb_cli.prompts.template import render
from llmemb_cli.prompts.views import other_drop, random_drop


@dataclass(frozen=True)
class Items:
    """What SCFT knows of the items, in item order.

    Attributes:
        parts: (n,) lists of attribute texts.
        prompts: (n,) full prompts.
    """

    parts: pl.Series
    prompts: pl.Series
    instruction: str
    separator: str

    def __len__(self) -> int:
        return len(self.prompts)

    def text(self, kept: list[str]) -> str:
        """A view as text."""
        return render(self.instruction, kept, self.separator)


@dataclass(frozen=True)
class Views:
    """Two views of each of n items: the attributes they keep, and the 2n texts, first views first."""

    first: list[list[str]]
    second: list[list[str]]
    texts: list[str]
    prompts: list[str]


def draw_views(
    items: Items, chosen: np.ndarray, ratio: float, rng: np.random.Generator, *, unlike: bool = False
) -> Views:
    """Two fresh views of every chosen item; with `unlike`, of different attributes where the item has enough."""
    parts = items.parts.gather(chosen).to_list()
    first = [random_drop(texts, ratio, rng) for texts in parts]
    if unlike:
        second = [other_drop(texts, ratio, rng, kept) for texts, kept in zip(parts, first, strict=True)]
    else:
        second = [random_drop(texts, ratio, rng) for texts in parts]
    texts = [items.text(kept) for kept in (*first, *second)]
    return Views(first, second, texts, items.prompts.gather(chosen).to_list())


@dataclass
class Trainer:
    """The parts a training step works on."""

    loaded: LoadedModel
    model: Any
    log_temperature: torch.nn.Parameter
    settings: ScftSettings
    seed: int
    items: Items
    micro: MicroBatches
    peers: Peers = ALONE
    trained: list[torch.nn.Parameter] = field(default_factory=list)
    dropout: DropoutPool | None = None
    shares_prefix: bool = False

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut at the longest allowed.

        Raises:
            BadDataError: a text has no token.
        """
        encoded = self.loaded.tokenizer(texts, truncation=True, max_length=self.settings.max_tokens)
        tokens = list(encoded["input_ids"])
        if not all(tokens):
            bare = next(text for text, ids in zip(texts, tokens, strict=True) if not ids)
            raise BadDataError(f"the tokenizer makes no token of {bare!r}", where=str(self.loaded.folder))
        return tokens

    def embed(self, token_lists: list[list[int]]) -> torch.Tensor:
        """(n, d) float32 vectors of one micro-batch; what all its texts begin with passes the model once."""
        if self.dropout is not None:
            self.dropout.refresh()
        device, length = self.loaded.device, common_prefix(token_lists) if self.shares_prefix else 0
        # PEFT's own layers leave their float32 matrices to autocast; ours compute in the model's precision.
        mixed = self.dropout is None and self.loaded.dtype != torch.float32
        with torch.autocast(device.split(":")[0], dtype=self.loaded.dtype, enabled=mixed):
            if length >= LEAST_TOKENS and len(token_lists) > 1:
                return self._embed_after_prefix(token_lists, length)
            ids, mask = pad_tokens(token_lists, self.loaded.tokenizer.pad_token_id)
            return embed_batch(self.model, ids.to(device), mask.to(device), self.settings.pooling)

    def _embed_after_prefix(self, token_lists: list[list[int]], length: int) -> torch.Tensor:
        """As `embed`, with gradients through the shared beginning too; its dropout is the same for all texts."""
        device = self.loaded.device
        prefix = read_beginning(self.model, token_lists[0][:length], device)
        assert prefix is not None, "find_prefix has seen that this model keeps keys and values"
        rest, mask = pad_tokens([tokens[length:] for tokens in token_lists], self.loaded.tokenizer.pad_token_id)
        return embed_after(self.model, prefix, rest.to(device), mask.to(device), self.settings.pooling)

    def find_prefix(self) -> None:
        """See whether this model gives the same vectors when the beginning of its texts is computed once."""
        if self.settings.gradient_checkpointing:
            return  # which allows no cache
        some = self.tokens(self.items.prompts[:64].to_list())
        set_training(self.model, False)
        self.shares_prefix = len(some) > 1 and compute_prefix(self.loaded, some, self.settings.pooling) is not None
        set_training(self.model, True)

    def temperature(self) -> float:
        """The temperature now."""
        return float(self.log_temperature.detach().exp())


def set_training(model: Any, training: bool) -> None:
    """Dropout on or off.

    4-bit layers stay in training mode: without it, on a CPU, bitsandbytes packs their weights for good into a form
    that no gradient passes.
    """
    model.train(training)
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True


@dataclass(frozen=True)
class Share:
    """This process's part of some texts: every size-th in order of length, so that all have as much to do.

    Attributes:
        tokens: token lists of the texts of this process, short ones first.
        counts: how many texts each process has.
        place: puts the gathered vectors of all processes back into the order of the texts.
    """

    tokens: list[list[int]]
    counts: list[int]
    place: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text of this process."""
        return [len(row) for row in self.tokens]


def share_texts(token_lists: Sequence[list[int]], peers: Peers, device: str) -> Share:
    """Deal texts out to the processes."""
    order = np.argsort([len(row) for row in token_lists], kind="stable")
    dealt = [order[rank :: peers.size] for rank in range(peers.size)]
    place = np.argsort(np.concatenate(dealt), kind="stable")
    return Share(
        [token_lists[int(i)] for i in dealt[peers.rank]],
        peers.share(len(order)),
        torch.from_numpy(place).to(device),
    )
