"""TSLRec (Liu et al., arXiv 2406.00333): an LLM learns users' tastes from item identities, without any text of items.

The authors published no code. What is not public is marked [choice].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llmemb_cli.assets.models import local_model
from llmemb_cli.checkpoint import forget_checkpoint
from llmemb_cli.config.runs import run_name, tslrec_source
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import Ragged, load_split
from llmemb_cli.devices import pick_device
from llmemb_cli.embeddings.pca import fit_pca, write_pca
from llmemb_cli.embeddings.table import fill_table, forget_progress, keep_table
from llmemb_cli.interrupt import StopRequest
from llmemb_cli.llm.adapter import with_lora
from llmemb_cli.llm.attention import use_short_attention
from llmemb_cli.llm.fastlora import speed_up
from llmemb_cli.llm.fit import fit, fitting
from llmemb_cli.llm.load import LoadedModel, load_model
from llmemb_cli.llm.pooling import pool
from llmemb_cli.llm.prefix import CHECKED, Prefix, agree, embed_after, read_beginning
from llmemb_cli.llm.trainer import set_training
from llmemb_cli.pipeline import tslrec_stage
from llmemb_cli.progress import Reporter
from llmemb_cli.seeds import stream_seed
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.make import StageResult, run_stage
from llmemb_cli.workspace.stage import require_stage
from llmemb_cli.workspace.store import read_tensors

if TYPE_CHECKING:
    import polars as pl

BEFORE, AFTER = "The user has interacted with:", ". Predict the preference over categories."  # [choice]
ITEMS_PER_GROUP = 20  # at least, on average
BATCH = 256  # items that pass the tuned model at once


def run_tslrec(workspace: Workspace, settings: Settings, report: Reporter, force: bool = False) -> StageResult:
    """Make `embeddings/tslrec` from the collaborative run that `tslrec_source` names, which must be there.

    Raises:
        InterruptedRunError: a signal came; a checkpoint is kept and the same call goes on.
    """
    device = pick_device(settings.scft.device)
    local_model(settings.scft.model, report)  # the manifest says which weights it was made from
    source = run_name(tslrec_source(settings), settings)

    stage = tslrec_stage(workspace, settings)

    def build(work: Path) -> dict[str, Any]:
        if not force and (kept := keep_table(stage, work, report)):
            write_pca(work, fit_pca(kept[0], settings.embed.pca, report))
            return kept[1]
        require_stage(workspace.run(source), made_by="llmemb rat --method none")
        data = load_split(workspace.data)
        table = read_tensors(workspace.run(source) / "item_embeddings.safetensors")["item_embeddings"].numpy()
        groups = item_groups(table, settings.tslrec.groups, settings.seed)
        targets = taste(data.train, groups)
        users = np.flatnonzero(data.train.lengths() > 0)
        loaded = load_model(settings.scft, report, device=device)
        torch.manual_seed(stream_seed(settings.seed, "tslrec-init"))
        reader = Reader(loaded, settings, identity_rows(table, loaded, settings.seed), targets.shape[1])

        histories = [data.train.row(int(user))[-settings.tslrec.max_items :] for user in users]
        lengths = reader.lengths(histories)

        def loss_of(part: np.ndarray, batch: np.ndarray) -> torch.Tensor:
            guess = reader.head(reader.read([histories[row] for row in part]))
            wanted = torch.from_numpy(targets[users[part]]).to(guess)
            return (guess - wanted).square().sum() / (len(batch) * targets.shape[1])

        tslrec, trained, lean = settings.tslrec, reader.trained(), reader.dropout is not None
        losses = fit(
            "tslrec",
            loaded,
            trained,
            lengths,
            loss_of,
            fitting(loaded, settings.scft, int(lengths.max()), trained.values(), lean=lean),
            epochs=tslrec.epochs,
            batch_size=tslrec.batch_size,
            learning_rate=tslrec.learning_rate,
            checkpoint_minutes=tslrec.checkpoint_minutes,
            seed=settings.seed,
            work=work,
            report=report,
        )
        vectors = reader.items(data.item_ids, work, report)
        write_pca(work, fit_pca(vectors, settings.embed.pca, report))
        forget_progress(work)
        forget_checkpoint(work)
        return {
            "items": data.n_items,
            "width": vectors.shape[1],
            "model": settings.scft.model,
            "groups": targets.shape[1],
            "groups_from": source,
            "loss": losses,
        }

    return run_stage(stage, build, force=force, report=report, device=device)


def item_groups(table: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(n_items,) int64: the k-means cluster of each item's collaborative embedding; its latent category."""
    from sklearn.cluster import KMeans

    possible = max(min(count, len(table) // ITEMS_PER_GROUP), 2)
    return KMeans(possible, random_state=seed % 2**32, n_init=4).fit_predict(table).astype(np.int64)


def taste(train: Ragged, groups: np.ndarray) -> np.ndarray:
    """(users, K) float32: which share of a user's training items is of each group."""
    count = int(groups.max()) + 1
    users = np.repeat(np.arange(len(train)), train.lengths())
    met = np.bincount(users * count + groups[train.values - 1], minlength=len(train) * count).reshape(-1, count)
    return (met / np.maximum(train.lengths(), 1)[:, None]).astype(np.float32)


def identity_rows(table: np.ndarray, loaded: LoadedModel, seed: int) -> torch.Tensor:
    """(n_items, d_t) float32 on the CPU: what the LLM reads for an item, at the scale of its token embeddings.

    An item is a token of its own. Its row is a random projection of the collaborative embedding, which keeps the
    distances of items, and is not trained [choice].
    """
    words = loaded.model.get_input_embeddings()
    with torch.no_grad():  # not its weights: some models scale what they read of them
        tokens = words(torch.arange(len(words.weight), device=loaded.device)).float()
    generator = torch.Generator().manual_seed(stream_seed(seed, "tslrec-rows"))
    rows = torch.from_numpy(table - table.mean(axis=0)) @ torch.randn(
        table.shape[1], tokens.shape[1], generator=generator
    )
    return rows * (tokens.std().cpu() / rows.std())


class Reader:
    """Instruction and identities in, the state of the last token out; LoRA and a linear head are trained."""

    def __init__(self, loaded: LoadedModel, settings: Settings, rows: torch.Tensor, groups: int) -> None:
        scft = settings.scft
        self.loaded = loaded
        self.table = loaded.model.get_input_embeddings()
        self.model = with_lora(loaded, scft)
        # Cast once, and only here: LoRA on weights of 8 or 4 bits makes the token embeddings float32.
        self.rows = rows.to(self.table.weight.dtype).to(loaded.device)
        self.dropout = speed_up(self.model, scft.lora_dropout, pooled=not scft.gradient_checkpointing)
        if loaded.device == "cpu":
            use_short_attention(loaded.model)
        self.head = nn.Linear(rows.shape[1], groups).to(loaded.device)
        self.before = list(loaded.tokenizer(BEFORE)["input_ids"])
        self.after = list(loaded.tokenizer(AFTER, add_special_tokens=False)["input_ids"])
        self.shares_beginning = not scft.gradient_checkpointing and self._agrees()

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        lora = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return lora | {f"head.{name}": p for name, p in self.head.named_parameters()}

    def lengths(self, histories: list[np.ndarray]) -> np.ndarray:
        """(n,) int64: tokens that the model reads for each item sequence."""
        return np.array([len(items) for items in histories]) + len(self.before) + len(self.after)

    def read(self, histories: list[np.ndarray], beginning: Prefix | None = None) -> torch.Tensor:
        """(batch, d_t) float32 for item sequences (items 1..N), oldest first.

        Args:
            beginning: the states of the words before the items, where they are known.
        """
        if self.dropout is not None:
            self.dropout.refresh()
        with self._precision():
            if self.shares_beginning and beginning is None:
                beginning = read_beginning(self.model, self.before, self.loaded.device)
            if beginning is not None:
                return embed_after(self.model, beginning, *self._embedded([], histories), "last")
            embedded, mask = self._embedded(self.before, histories)
            states = self.model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        return pool(states, mask, "last")

    def _embedded(self, before: list[int], histories: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model reads, (batch, length, d_t) padded on the right, and its mask (batch, length) int64."""
        device, kind = self.loaded.device, self.table.weight.dtype
        words = [torch.tensor(ids, dtype=torch.int64, device=device) for ids in (before, self.after)]
        first, last = (self.table(ids).to(kind) for ids in words)
        # All items in one copy to the device: one for each history, and a card would wait as often.
        places = torch.from_numpy(np.concatenate(histories).astype(np.int64) - 1).to(device)
        rows = self.rows[places].split([len(items) for items in histories])
        parts = [torch.cat([first, own, last]) for own in rows]
        embedded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(part) for part in parts], device=device)
        return embedded, (torch.arange(embedded.shape[1], device=device) < lengths[:, None]).long()

    @torch.no_grad()
    def items(self, item_ids: pl.Series, work: Path, report: Reporter) -> np.ndarray:
        """Write the table of (n_items, d_t) float32: each item as the only one of a user's history.

        Raises:
            InterruptedRunError: a signal came; what is in `work` is gone on with.
        """
        set_training(self.model, False)
        count = len(item_ids)
        beginning = self._beginning() if self.shares_beginning else None

        def compute(rows: np.ndarray, stop: StopRequest) -> np.ndarray:
            return self.read(list(rows[:, None] + 1), beginning).float().cpu().numpy()

        parts = [np.arange(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
        return fill_table(work, item_ids, self.rows.shape[1], parts, compute, "tslrec items", report)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether some items come out the same when the words before them are read once."""
        some = list(np.arange(1, min(len(self.rows), CHECKED) + 1)[:, None])
        self.shares_beginning = False
        set_training(self.model, False)
        plain, beginning = self.read(some), self._beginning()
        near = beginning is not None and agree(plain, self.read(some, beginning), self.loaded.dtype)
        set_training(self.model, True)
        return near

    def _beginning(self) -> Prefix | None:
        with self._precision():
            return read_beginning(self.model, self.before, self.loaded.device) if self.before else None

    def _precision(self) -> torch.autocast:
        """PEFT's own layers leave their float32 matrices to autocast; ours compute in the model's precision."""
        dtype = self.loaded.dtype
        mixed = self.dropout is None and dtype != torch.float32
        return torch.autocast(self.loaded.device.split(":")[0], dtype=dtype, enabled=mixed)
