"""The backbones as data: what they are trained on, with which loss, and who published them.

Help, training, reports and docs read this table; `srs/backbones/` holds the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmemb_cli.config.methods import MethodName

BackboneName = Literal["sasrec", "gru4rec", "bert4rec", "caser", "fmlprec", "bsarec"]


@dataclass(frozen=True)
class Backbone:
    """One backbone.

    Attributes:
        title: its name in its paper.
        help: one line for people, with the source.
        learns: what a training sequence teaches: `next` (the next item at every position), `masked` (items hidden in
            it) or `last` (its last item, from those before it). Backbones whose positions see later ones learn
            `last`, from every beginning of a user's history, as their authors train them.
        loss: the loss of its paper, in force with `rat.loss = "auto"`.
        reads: those of the settings that some backbones share which it has a use for.
        options: how the names of its own settings in `[rat]` begin.
        unfit: methods it cannot be trained with, and why.
    """

    title: str
    help: str
    learns: Literal["next", "masked", "last"]
    loss: Literal["bce", "ce"]
    reads: frozenset[str] = frozenset()
    options: str = ""
    unfit: Mapping[MethodName, str] = field(default_factory=dict)


# Settings that some backbones share and others do not know.
SHARED = frozenset({"layers", "heads", "mask_ratio", "compat"})

BACKBONES: dict[BackboneName, Backbone] = {
    "sasrec": Backbone(
        "SASRec",
        "self-attention that looks only back (Kang and McAuley, ICDM 2018)",
        "next",
        "bce",
        frozenset({"layers", "heads", "compat"}),
    ),
    "gru4rec": Backbone("GRU4Rec", "a recurrent network (Hidasi et al., ICLR 2016)", "next", "bce"),
    "bert4rec": Backbone(
        "BERT4Rec",
        "self-attention in both directions that fills in masked items (Sun et al., CIKM 2019)",
        "masked",
        "ce",
        frozenset({"layers", "heads", "mask_ratio"}),
    ),
    "caser": Backbone(
        "Caser",
        "convolutions over the newest items (Tang and Wang, WSDM 2018)",
        "next",
        "bce",
        options="caser_",
        unfit={"melt": "MELT puts states into the item table, and Caser's grow with the table: training diverges"},
    ),
    "fmlprec": Backbone(
        "FMLP-Rec", "learned filters of frequencies (Zhou et al., WWW 2022)", "last", "bce", frozenset({"layers"})
    ),
    "bsarec": Backbone(
        "BSARec",
        "self-attention beside a filter of slow changes (Shin et al., AAAI 2024)",
        "last",
        "ce",
        frozenset({"layers", "heads"}),
        "bsarec_",
    ),
}


def backbones_help() -> str:
    """One line a backbone, as a Markdown list."""
    return "\n".join(f"- `{name}`: {backbone.help}" for name, backbone in BACKBONES.items())
