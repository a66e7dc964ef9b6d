"""The loss that a method adds, made from its entry in the table of methods."""

from __future__ import annotations

import torch

from llmemb_cli.config.runs import method_of
from llmemb_cli.config.settings import Settings
from llmemb_cli.datasets.split import SplitData
from llmemb_cli.srs.item_embedding import DualTable
from llmemb_cli.srs.methods.align import Align
from llmemb_cli.srs.methods.distill import Distill, similar_users
from llmemb_cli.srs.methods.melt import Melt
from llmemb_cli.srs.methods.views import Views
from llmemb_cli.srs.objective import Extra, Step
from llmemb_cli.srs.recommender import Recommender


def make_extra(
    settings: Settings, model: Recommender, data: SplitData, collaborative: torch.Tensor | None, device: str
) -> Extra | None:
    """What is added to the backbone's own loss, or None.

    Args:
        collaborative: (n_items, d) float, item embeddings of the collaborative run, where the method reads one.
    """
    added = [_of_method(settings, model, data, collaborative, device)]
    if settings.rat.contrast == "cl4srec":
        added.append(Views(settings.rat, data.train, device))
    losses = [one for one in added if one is not None]
    return Several(losses) if losses else None


class Several:
    """The sum of several added losses."""

    def __init__(self, losses: list[Extra]) -> None:
        self.losses = losses

    @property
    def recordable(self) -> bool:
        return all(one.recordable for one in self.losses)

    def start_epoch(self, model: Recommender, epoch: int) -> None:
        for one in self.losses:
            one.start_epoch(model, epoch)

    def loss(self, model: Recommender, step: Step) -> torch.Tensor:
        first, *rest = (one.loss(model, step) for one in self.losses)
        return sum(rest, first)


def _of_method(
    settings: Settings, model: Recommender, data: SplitData, collaborative: torch.Tensor | None, device: str
) -> Extra | None:
    kind, rat = method_of(settings).extra, settings.rat
    if kind == "melt":
        return Melt(settings, data, model, device)
    if kind == "distill":
        assert isinstance(model.embedding, DualTable)
        vectors = model.embedding.semantic.vectors.float().cpu().numpy()  # NumPy has no bfloat16
        return Distill(rat, data.train, similar_users(data.train, vectors, rat.esr_similar_users), device)
    if kind == "align" and collaborative is not None:
        return Align(rat, collaborative.to(device))
    return None
