"""A recommender: item embeddings, backbone and, of some, a bias an item (BERT4Rec). Trained in `train.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from llmemb_cli.config.backbones import BACKBONES, BackboneName
from llmemb_cli.config.methods import METHODS
from llmemb_cli.config.rat import RatSettings, settings_of_run
from llmemb_cli.config.runs import is_adjusted
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.errors import BadDataError, WrongUseError
from llmemb_cli.srs.backbones.bert4rec import BERT4Rec
from llmemb_cli.srs.backbones.bsarec import BSARec
from llmemb_cli.srs.backbones.caser import Caser
from llmemb_cli.srs.backbones.dual import DualView
from llmemb_cli.srs.backbones.fmlprec import FMLPRec
from llmemb_cli.srs.backbones.gru4rec import GRU4Rec
from llmemb_cli.srs.backbones.interface import SequenceModel
from llmemb_cli.srs.backbones.sasrec import SASRec
from llmemb_cli.srs.item_embedding import INIT_STD, FrozenTable, ItemEmbedding
from llmemb_cli.srs.methods.branches import MeltBranches
from llmemb_cli.srs.sequences import group_saving, length_groups
from llmemb_cli.workspace.stage import require_stage
from llmemb_cli.workspace.store import made_again, read_tensors


class Recommender(nn.Module):
    """Scores of all items after a sequence: `encode(sequences) @ item_table.T + item_bias`."""

    def __init__(self, settings: RatSettings, n_items: int, embedding: ItemEmbedding) -> None:
        super().__init__()
        self.n_items, self.max_length, self.kind = n_items, settings.max_length, settings.backbone
        self.temperature = settings.temperature if settings.scores_cosines else None
        # What the backbone multiplies in, if not float32; `srs/precision.py` sets it.
        self.mixed: torch.dtype | None = None
        self.embedding = embedding
        self.backbone = make_backbone(settings)
        self.bias = nn.Parameter(torch.zeros(n_items + 1)) if self.kind == "bert4rec" else None
        melt = METHODS[settings.method].extra == "melt"
        self.branches = MeltBranches(embedding.width, settings.max_length) if melt else None
        # CL4SRec masks items in training, also before backbones that know no [MASK].
        lacking = settings.contrast == "cl4srec" and self.backbone.mask_vector is None
        self.mask_vector = nn.Parameter(torch.randn(embedding.width) * INIT_STD) if lacking else None

    @property
    def mask_item(self) -> int:
        """The item number that stands for [MASK]."""
        return self.n_items + 1

    @property
    def item_table(self) -> torch.Tensor:
        """(n_items + 1, d) float, what states are multiplied with; row 0 = padding."""
        return self.scored(self.embedding.table())

    def scored(self, table: torch.Tensor) -> torch.Tensor:
        """What states are multiplied with, from item embeddings: those, or their directions where cosines count."""
        return table if self.temperature is None else nn.functional.normalize(table, dim=1)

    def scoring(self, states: torch.Tensor) -> torch.Tensor:
        """What `scored` item embeddings are multiplied with, from states (n, d)."""
        # With cosines a state's length matters only to the biases.
        return states if self.temperature is None else nn.functional.normalize(states, dim=1) / self.temperature

    @property
    def item_bias(self) -> torch.Tensor | None:
        """(n_items + 1,) float, or None."""
        return self.bias

    def states(self, sequences: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """(batch, length, d) states; `embedded` (batch, length, d) may hold anything at [MASK] and padding."""
        mask_vector = self.backbone.mask_vector if self.mask_vector is None else self.mask_vector
        if isinstance(mask_vector, torch.Tensor):
            masked = (sequences == self.mask_item)[:, :, None]
            embedded = torch.where(masked, mask_vector.to(embedded.dtype), embedded)
        with torch.autocast(embedded.device.type, self.mixed, enabled=self.mixed is not None):
            return self.backbone(embedded, sequences > 0).to(embedded.dtype)

    def encode(self, sequences: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
        """The user's state after each sequence.

        Args:
            sequences: (batch, length) int64, left-padded with 0, at most `max_length` are used.
            table: `embedding.table()`, where many batches are encoded; else embeddings are made for this one.

        Returns:
            (batch, d) float.
        """
        states = self.last_states(sequences, table)
        if self.branches is not None:
            states = self.branches.lift_short(states, (sequences > 0).sum(dim=1))
        return self.scoring(states)

    def last_states(self, sequences: torch.Tensor, table: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, d): the backbone's state after each sequence, f(S), before anything a method adds; see `encode`."""
        if self.kind == "bert4rec":
            mask = torch.full_like(sequences[:, :1], self.mask_item)
            sequences = torch.cat([sequences, mask], dim=1)
        sequences = sequences[:, -self.max_length :]
        known = sequences.clamp(max=self.n_items)
        if table is not None:
            return self.states(sequences, nn.functional.embedding(known, table))[:, -1]
        items, place = torch.unique(known, return_inverse=True)
        return self.states(sequences, nn.functional.embedding(place, self.embedding.rows(items)))[:, -1]

    def last_states_in_groups(self, sequences: np.ndarray, device: str) -> torch.Tensor:
        """`last_states` of (batch, length) int64 on the CPU, each group of like lengths cut to its longest."""
        lengths = (sequences > 0).sum(axis=1)
        groups = length_groups(lengths, group_saving(device))
        states = [torch.zeros(0, self.embedding.width, device=device)]
        for rows in groups:
            cut = sequences[rows, -max(int(lengths[rows].max(initial=0)), 1) :]
            states.append(self.last_states(torch.from_numpy(cut).to(device)))
        place = torch.from_numpy(np.argsort(np.concatenate([*groups, []]))).to(device)
        return nn.functional.embedding(place, torch.cat(states))


def _common(s: RatSettings) -> tuple[int, int, int, int, float]:
    return s.hidden_size, s.max_length, s.layers, s.heads, s.dropout


_MAKE: dict[BackboneName, Callable[[RatSettings], SequenceModel]] = {
    "sasrec": lambda s: SASRec(*_common(s), causal=s.compat != "official"),
    "gru4rec": lambda s: GRU4Rec(s.hidden_size, 1, s.dropout),
    "bert4rec": lambda s: BERT4Rec(*_common(s)),
    "caser": lambda s: Caser(
        s.hidden_size, s.dropout, window=s.caser_window, horizontal=s.caser_horizontal, vertical=s.caser_vertical
    ),
    "fmlprec": lambda s: FMLPRec(s.hidden_size, s.max_length, s.layers, s.dropout),
    "bsarec": lambda s: BSARec(*_common(s), alpha=s.bsarec_alpha, cutoff=s.bsarec_cutoff),
}


def check_heads(settings: RatSettings) -> None:
    """Raise WrongUseError where a backbone with attention cannot share its width out among its heads."""
    width, heads = settings.hidden_size, settings.heads
    if "heads" in BACKBONES[settings.backbone].reads and width % heads:
        fitting = ", ".join(str(count) for count in range(1, width + 1) if width % count == 0)
        raise WrongUseError(
            f"rat.heads is {heads} and rat.hidden_size {width}: every head needs an equal share of the width",
            hint=f"take one of {fitting} heads, or another width",
        )


def make_backbone(settings: RatSettings) -> nn.Module:
    """The backbone that the settings name; for a dual embedding, shared by both views.

    Raises:
        WrongUseError: heads and width do not fit.
    """
    check_heads(settings)
    backbone = _MAKE[settings.backbone](settings)
    dual = METHODS[settings.method].embedding == "dual"
    return DualView(backbone, settings.hidden_size) if dual else backbone


def load_recommender(run: Path, data: SplitData, device: str = "cpu") -> Recommender:
    """A trained recommender from its run directory, ready to `encode`.

    Its item embeddings are the table that training left, whatever they were made from: LLM vectors and adapter are
    not needed any more.

    Raises:
        WrongUseError: there is no such run.
        BadDataError: it was trained on other data.
    """
    manifest = require_stage(run, made_by="llmemb rat")
    if manifest["made_from"]["inputs"]["data"] != data.fingerprint:
        raise BadDataError(
            "the run was trained on other data",
            where=str(run),
            hint="train the run that it is an adjustment of again, and keep that"
            if is_adjusted(manifest)
            else f"train it again as `llmemb runs show {run.name}` has it, or `llmemb runs remove {run.name}`",
        )
    settings = settings_of_run(manifest)
    table = read_tensors(run / "item_embeddings.safetensors", made_again(run))["item_embeddings"]
    model = Recommender(settings, data.n_items, FrozenTable(table))
    weights = read_tensors(run / "model.safetensors", made_again(run))
    if model.bias is None and "bias" in weights:  # of a run that `llmemb adjust` kept
        model.bias = nn.Parameter(torch.zeros(data.n_items + 1))
    # Nothing is masked after training, and older runs with the contrast have no vector for it.
    kept = {name: tensor for name, tensor in model.state_dict().items() if name == "mask_vector"}
    model.load_state_dict(
        kept | {name: tensor for name, tensor in weights.items() if not name.startswith("embedding.")}
    )
    return model.to(device).train(False)
