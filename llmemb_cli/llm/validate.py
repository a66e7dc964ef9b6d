"""The validation curve of SCFT: how well held-out items are found by another view of theirs."""

from __future__ import annotations

import numpy as np
import torch

from llmemb_cli.contrastive import contrastive_loss
from llmemb_cli.errors import LlmembError
from llmemb_cli.llm.gradcache import OutOfMemoryAtError, embed_all
from llmemb_cli.llm.memory import make_room
from llmemb_cli.llm.trainer import Share, Trainer, draw_views, set_training, share_texts
from llmemb_cli.progress import Reporter
from llmemb_cli.prompts.views import not_negatives
from llmemb_cli.seeds import numpy_rng


@torch.no_grad()
def validate(trainer: Trainer, held_out: np.ndarray, report: Reporter) -> dict[str, float]:
    """Measure two fixed views of every held-out item; they keep different attributes where an item has enough.

    Returns:
        retrieval, mrr: how often an item's other view is the nearest among all items' (cosine), and the mean of
            1 / its rank, over both directions; items that cannot be told apart are left out of each other's lists,
            ties share their ranks. alignment: mean squared distance of the two views. uniformity: log mean
            exp(-2 squared distance) over pairs of items (Wang and Isola, ICML 2020), both of normalised vectors.
            validation_loss: the contrastive loss over the held-out items. Nothing for fewer than two items.

    Raises:
        LlmembError: vectors are not finite.
    """
    if len(held_out) < 2:
        return {}
    rng = numpy_rng(trainer.seed, "validation-views")
    views = draw_views(trainer.items, held_out, trainer.settings.drop_ratio, rng, unlike=True)
    share = share_texts(trainer.tokens(views.texts), trainer.peers, trainer.loaded.device)
    set_training(trainer.model, False)
    parts = _embed(trainer, share, report)
    set_training(trainer.model, True)
    vectors = trainer.peers.gather(torch.cat(parts), share.counts)[share.place]
    broken = int((~torch.isfinite(vectors).all(dim=1)).sum())
    if broken:
        # Of no number can be said that it is larger than NaN: ranks would be the best there are.
        raise LlmembError(
            f"{broken} of {len(vectors)} vectors of held-out items are not finite",
            hint=trainer.loaded.not_finite_hint,
        )
    same = torch.from_numpy(not_negatives(views.first, views.second, views.prompts)).to(vectors.device)
    left, right = vectors.chunk(2)
    figures = {}
    if not bool(same.all()):
        loss = contrastive_loss(trainer.settings.loss, left, right, trainer.log_temperature.exp(), same)
        figures["validation_loss"] = float(loss)
    left, right = (torch.nn.functional.normalize(side, dim=1) for side in (left, right))
    ranks = torch.cat([ranks_of_own(left @ right.T, same), ranks_of_own(right @ left.T, same)])
    distances = torch.pdist(left.cpu())
    return figures | {
        "retrieval": float((ranks == 1).float().mean()),
        "mrr": float((1 / ranks).mean()),
        "alignment": float((left - right).pow(2).sum(dim=1).mean()),
        "uniformity": float(distances.pow(2).mul(-2).exp().mean().log()),
    }


def _embed(trainer: Trainer, share: Share, report: Reporter) -> list[torch.Tensor]:
    while True:
        batches = trainer.micro.split(share.lengths)
        try:
            return embed_all([share.tokens[batch] for batch in batches], trainer.embed, trainer.peers)
        except OutOfMemoryAtError as error:
            failed = error.batch
        if failed is not None:
            make_room(trainer.micro, share.lengths[batches[failed]], report)


def ranks_of_own(similarity: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """The rank of column i in row i among the columns that are not `same`; ties share the mean of their ranks.

    Args:
        similarity: (n, n) float.
        same: (n, n) bool; such pairs are left out, the diagonal is not.
    """
    own = similarity.diagonal()[:, None]
    others = similarity.masked_fill(same, -torch.inf)
    return 1 + (others > own).sum(dim=1) + (others == own).sum(dim=1) / 2
