"""SAID (Hu et al., WWW 2024 Companion): one vector an item that makes a frozen LLM write the item's text.

The authors published no code. What the paper leaves open is marked [choice].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmemb_cli.assets.architecture import ENCODERS
from llmemb_cli.assets.models import local_model
from llmemb_cli.checkpoint import forget_checkpoint
from llmemb_cli.config.settings import Settings
from llmemb_cli.cross_entropy import cross_entropy
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import EmbeddingTable, keep_table, write_table
from llmemb_cli.errors import BadDataError
from llmemb_cli.llm.attention import use_short_attention
from llmemb_cli.llm.fit import fit, fitting
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.prefix import LEAST_TOKENS, Prefix, agree, read_beginning, states_after
from llmemb_cli.pipeline import said_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.stage import read_prompts
from llmemb_cli.prompts.template import render
from llmemb_cli.seeds import numpy_rng, stream_seed
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage

CHECKED = 256  # items whose texts are scored with their own and with another item's vector
HEAD = "lm_head.weight"


def run_said(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Make `embeddings/said`: fit the vectors of all items.

    Raises:
        WrongUseError: prompts have not been made.
        BadDataError: the model has no language-model head.
        InterruptedRunError: a signal came; a checkpoint is kept and the same call goes on.
    """
    device = pick_device(settings.scft.device)
    local_model(settings.scft.model, report)  # the manifest says which weights it was made from

    stage = said_stage(workspace, settings)

    def build(work: Path) -> dict[str, Any]:
        if not force and (kept := keep_table(stage, work, report)):
            write_pca(work, fit_pca(kept[0], settings.embed.pca, report))
            return kept[1]
        frame, prompts = read_prompts(workspace)
        loaded = load_model(settings.scft, report, device=device)
        texts = [render("", parts, prompts["separator"]) for parts in frame["parts"].to_list()]
        torch.manual_seed(stream_seed(settings.seed, "said-init"))
        writer = Writer(loaded, prompts["instruction"], texts, settings)
        said, lengths = settings.said, writer.lengths()
        losses = fit(
            "said",
            loaded,
            dict(writer.vectors.named_parameters()),
            lengths,
            lambda part, batch: writer.loss(part, batch=batch),
            fitting(loaded, settings.scft, int(lengths.max()), writer.vectors.parameters(), lean=True),
            epochs=said.epochs,
            batch_size=said.batch_size,
            learning_rate=said.learning_rate,
            checkpoint_minutes=said.checkpoint_minutes,
            seed=settings.seed,
            work=work,
            report=report,
        )
        with torch.no_grad():
            vectors = writer.vectors(torch.arange(len(texts), device=device)).float().cpu().numpy()
        write_table(work, EmbeddingTable(frame["item_id"], vectors))
        write_pca(work, fit_pca(vectors, settings.embed.pca, report))
        own, other = check(writer, len(texts), settings.seed)
        forget_checkpoint(work)
        return {
            "items": len(texts),
            "width": vectors.shape[1],
            "model": settings.scft.model,
            "loss": losses,
            "loss_with_own_vector": own,
            "loss_with_another_vector": other,
        }

    return run_stage(stage, build, force=force, report=report, device=device)


class ItemVectors(nn.Module):
    """A table, and with `width` a linear projector from it to the LLM's width."""

    def __init__(self, start: torch.Tensor, width: int) -> None:
        super().__init__()
        rows = torch.randn(len(start), width) * 0.02 if width else start.float()
        self.table = nn.Parameter(rows)
        self.projector = nn.Linear(width, start.shape[1]) if width else None

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """(k,) int64 -> (k, d_t) what the LLM reads."""
        # Not table[items]: several threads would add up its gradient in an order of chance.
        rows = nn.functional.embedding(items, self.table)
        return rows if self.projector is None else self.projector(rows)


class Writer:
    """The frozen LLM reads instruction and vector, and is asked for the text, token by token."""

    def __init__(self, loaded: LoadedModel, instruction: str, texts: list[str], settings: Settings) -> None:
        self.loaded, tokenizer = loaded, loaded.tokenizer
        self.table = loaded.model.get_input_embeddings()
        self.head = output_matrix(loaded)
        # BOS where the tokenizer has one, a short instruction, the vector, the text, EOS [choice].
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.before = begin + list(tokenizer(instruction, add_special_tokens=False)["input_ids"])
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=settings.said.max_tokens)
        self.tokens = [list(ids) + end for ids in encoded["input_ids"]]
        # A vector starts as the mean of its text's token embeddings [choice].
        with torch.no_grad():
            rows = [self.table(torch.tensor(ids, device=loaded.device)).mean(dim=0) for ids in self.tokens]
            start = torch.stack(rows)
        self.vectors = ItemVectors(start, settings.said.width).to(loaded.device)
        if loaded.device == "cpu":
            use_short_attention(loaded.model)
        self.beginning: Prefix | None = None
        self.beginning = self._read_beginning()

    def lengths(self) -> np.ndarray:
        """(n_items,) int64: tokens that the model reads for each item."""
        return np.array([len(ids) for ids in self.tokens]) + len(self.before)

    def loss(
        self, items: np.ndarray, vectors_of: np.ndarray | None = None, batch: np.ndarray | None = None
    ) -> torch.Tensor:
        """Mean over the text's tokens of -log p(token | instruction, vector, tokens before).

        Args:
            items: (k,) int, whose texts are written.
            vectors_of: (k,) int, whose vectors are read; default: the same items'.
            batch: (batch,) int, the items whose tokens the mean is over, where `items` are a part of them.
        """
        device = self.loaded.device
        texts = [self.tokens[int(item)] for item in items]
        longest = max(map(len, texts))
        padded = torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for ids in texts], device=device)
        wanted = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts], device=device) > 0
        read = items if vectors_of is None else vectors_of
        vectors = self.vectors(torch.from_numpy(read).to(device))[:, None].to(self.table.weight.dtype)
        states = self.states(torch.cat([vectors, self.table(padded[:, :-1])], dim=1))
        chosen = states[wanted].float()
        among = sum(len(self.tokens[int(item)]) for item in (items if batch is None else batch))
        return cross_entropy(chosen, padded[wanted], self.head) / among

    def states(self, embedded: torch.Tensor) -> torch.Tensor:
        """(batch, length, d_t) states of what stands behind the instruction.

        Padding is on the right of causal attention: no token of a text sees it.
        """
        device, dtype = self.loaded.device, self.loaded.dtype
        with torch.autocast(device.split(":")[0], dtype=dtype, enabled=dtype != torch.float32):
            if self.beginning is not None:
                mask = torch.ones(embedded.shape[:2], dtype=torch.int64, device=device)
                return states_after(self.loaded.model, self.beginning, embedded, mask)
            before = torch.tensor(self.before, dtype=torch.int64, device=device).expand(len(embedded), -1)
            whole = torch.cat([self.table(before), embedded], dim=1)
            states: torch.Tensor = self.loaded.model(inputs_embeds=whole).last_hidden_state
            return states[:, before.shape[1] :]

    @torch.no_grad()
    def _read_beginning(self) -> Prefix | None:
        """The states of the instruction, which is the same for all items; None where a text comes out otherwise."""
        if len(self.before) < LEAST_TOKENS:
            return None
        text = self.table(torch.tensor([self.tokens[0]], device=self.loaded.device))
        plain = self.states(text)[0]
        self.beginning = read_beginning(self.loaded.model, self.before, self.loaded.device)
        same = self.beginning is not None and agree(plain, self.states(text)[0], self.loaded.dtype)
        return self.beginning if same else None


def output_matrix(loaded: LoadedModel) -> torch.Tensor:
    """(vocabulary, d_t) float32: what states are multiplied with to score tokens.

    Raises:
        BadDataError: the folder has none, as of a model that only makes embeddings; or the model is an encoder.
    """
    from safetensors import safe_open

    if loaded.model.config.model_type in ENCODERS:
        raise BadDataError(
            "the model is an encoder, which reads a text as a whole and cannot write it",
            where=str(loaded.folder),
            hint="choose a causal language model with --set scft.model=...",
        )
    if loaded.model.config.get_text_config().tie_word_embeddings:
        return loaded.model.get_input_embeddings().weight.detach().float()
    for file in sorted(loaded.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            if HEAD in opened.keys():  # noqa: SIM118
                return opened.get_tensor(HEAD).float().to(loaded.device)
    raise BadDataError(
        "the model has no language-model head, so it cannot write texts",
        where=str(loaded.folder),
        hint="choose a causal language model with --set scft.model=...",
    )


@torch.no_grad()
def check(writer: Writer, count: int, seed: int) -> tuple[float, float]:
    """Mean token loss of texts given their own vector, and given that of another item."""
    items = numpy_rng(seed, "said-check").permutation(count)[:CHECKED]
    others = np.roll(items, 1)
    sums = np.zeros(2)
    for at in range(0, len(items), 32):
        part, strangers = items[at : at + 32], others[at : at + 32]
        sums += np.array([float(writer.loss(part)), float(writer.loss(part, strangers))]) * len(part)
    own, other = sums / len(items)
    return float(own), float(other)
