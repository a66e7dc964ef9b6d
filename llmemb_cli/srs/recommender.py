"""A recommender: item embeddings, backbone and, for BERT4Rec, a bias an item. Trained in `train.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from llmemb_cli.config.rat import RatSettings
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.embeddings.pca import fit_pca, read_pca
from llmemb_cli.embeddings.table import read_table, rows_for
from llmemb_cli.errors import BadDataError
from llmemb_cli.srs.backbones.bert4rec import BERT4Rec
from llmemb_cli.srs.backbones.gru4rec import GRU4Rec
from llmemb_cli.srs.backbones.sasrec import SASRec
from llmemb_cli.srs.item_embedding import AdaptedTable, Embedding, FrozenTable, ItemTable
from llmemb_cli.workspace.locate import Workspace
from llmemb_cli.workspace.stage import require_stage
from llmemb_cli.workspace.store import read_tensors

# Root mean square of the adapter's input. LLM states differ in scale by orders of magnitude between models; with
# this one the adapter's first output has a standard deviation of about 0.1 [choice].
INPUT_RMS = 0.3


class Recommender(nn.Module):
    """Scores of all items after a sequence: `encode(sequences) @ item_table.T + item_bias`."""

    def __init__(self, settings: RatSettings, n_items: int, embedding: Embedding) -> None:
        super().__init__()
        self.n_items, self.max_length, self.kind = n_items, settings.max_length, settings.backbone
        self.embedding = embedding
        self.backbone = make_backbone(settings)
        self.bias = nn.Parameter(torch.zeros(n_items + 1)) if self.kind == "bert4rec" else None

    @property
    def mask_item(self) -> int:
        """The item number that stands for [MASK]."""
        return self.n_items + 1

    @property
    def item_table(self) -> torch.Tensor:
        """(n_items + 1, d) float, row 0 = padding."""
        return self.embedding.table()

    @property
    def item_bias(self) -> torch.Tensor | None:
        """(n_items + 1,) float, or None."""
        return self.bias

    def states(self, sequences: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """(batch, length, d) states; `embedded` (batch, length, d) holds anything at [MASK]."""
        if isinstance(self.backbone, BERT4Rec):
            masked = (sequences == self.mask_item)[:, :, None]
            embedded = torch.where(masked, self.backbone.mask_vector.to(embedded.dtype), embedded)
        return self.backbone(embedded, sequences > 0)

    def encode(self, sequences: torch.Tensor) -> torch.Tensor:
        """The user's state after each sequence.

        Args:
            sequences: (batch, length) int64, left-padded with 0, at most `max_length` are used.

        Returns:
            (batch, d) float.
        """
        if self.kind == "bert4rec":
            mask = torch.full_like(sequences[:, :1], self.mask_item)
            sequences = torch.cat([sequences, mask], dim=1)
        sequences = sequences[:, -self.max_length :]
        items, place = torch.unique(sequences.clamp(max=self.n_items), return_inverse=True)
        return self.states(sequences, self.embedding.rows(items)[place])[:, -1]


def make_backbone(settings: RatSettings) -> nn.Module:
    """The backbone that the settings name."""
    common = (settings.hidden_size, settings.max_length, settings.layers, settings.heads, settings.dropout)
    if settings.backbone == "gru4rec":
        return GRU4Rec(settings.hidden_size, 1, settings.dropout)
    if settings.backbone == "bert4rec":
        return BERT4Rec(*common)
    return SASRec(*common, causal=settings.compat != "official")


def make_embedding(workspace: Workspace, settings: RatSettings, data: SplitData, kind: str | None) -> Embedding:
    """The item embedding of a method; `kind` names the LLM embeddings it reads (`scft`, `base`), if any.

    Raises:
        WrongUseError: the LLM embeddings have not been made.
        BadDataError: an item has none.
    """
    if kind is None:
        return ItemTable(data.n_items, settings.hidden_size)
    directory = workspace.embeddings(kind)
    command = "llmemb embed" if kind == "scft" else "llmemb embed --without scft"
    vectors = rows_for(read_table(directory, made_by=command), data.item_ids, str(directory))
    if "adapter" in settings.without:
        reduced = fit_pca(vectors, settings.hidden_size).transform(vectors)
        if reduced.shape[1] < settings.hidden_size:
            raise BadDataError(
                f"{reduced.shape[1]} principal components, {settings.hidden_size} needed without adapter",
                where=str(directory),
                hint=f"--set rat.hidden_size={reduced.shape[1]}",
            )
        return FrozenTable(torch.from_numpy(_scaled(reduced)))
    reduced = read_pca(directory).transform(vectors)[:, : settings.d_m]
    return AdaptedTable(
        torch.from_numpy(_scaled(reduced)), settings.hidden_size, freeze="freeze" not in settings.without
    )


def _scaled(vectors: np.ndarray) -> np.ndarray:
    """`vectors` times one number, so that their root mean square is INPUT_RMS."""
    return np.ascontiguousarray(vectors * (INPUT_RMS / np.sqrt(np.mean(vectors**2))), dtype=np.float32)


def load_recommender(run: Path, data: SplitData, device: str = "cpu") -> Recommender:
    """A trained recommender from its run directory, ready to `encode`.

    Raises:
        WrongUseError: there is no such run.
        BadDataError: it was trained on other data.
    """
    manifest = require_stage(run, made_by="llmemb rat")
    if manifest["made_from"]["inputs"]["data"] != data.fingerprint:
        raise BadDataError("the run was trained on other data", where=str(run), hint="run `llmemb rat` again")
    settings = RatSettings.model_validate(manifest["made_from"]["settings"])
    weights = read_tensors(run / "model.safetensors")
    model = Recommender(settings, data.n_items, _empty_embedding(settings, data.n_items, weights))
    model.load_state_dict(weights)
    return model.to(device).train(False)


def _empty_embedding(settings: RatSettings, n_items: int, weights: dict[str, torch.Tensor]) -> Embedding:
    """An embedding of the shape that `weights` has, to be filled by them."""
    if settings.method == "none":
        return ItemTable(n_items, settings.hidden_size)
    vectors = torch.zeros_like(weights["embedding.vectors"])
    if "adapter" in settings.without:
        return FrozenTable(vectors[1:])
    return AdaptedTable(vectors, settings.hidden_size, freeze="freeze" not in settings.without)
