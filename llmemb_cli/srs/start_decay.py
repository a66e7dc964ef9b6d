"""A pull of item tables back to where they start, so that rare items stay near what the LLM says of them.

Adam moves an item with three interactions about as far in a step as one with three hundred, on gradients that are
mostly those of a negative. With the pull only what the interactions ask for again and again stays.
"""

from __future__ import annotations

import torch

from llmemb_cli.srs.recommender import Recommender

Start = tuple[torch.nn.Parameter, torch.Tensor]


def table_starts(model: Recommender, decay: float) -> list[Start]:
    """The tables that start from something, each with a copy of that; none where `decay` is 0."""
    return [(table, table.detach().clone()) for table in model.embedding.with_start()] if decay else []


@torch.no_grad()
def pull_back(starts: list[Start], share: float) -> None:
    """Move every table `share` of the way back to its start, before the optimizer's step.

    That is L2-SP (Li, Grandvalet, Davoine, ICML 2018), decoupled from Adam's step as the weight decay of AdamW is
    (Loshchilov, Hutter, ICLR 2019), with which it agrees where the start is zero.
    """
    for table, start in starts:
        table.lerp_(start, min(share, 1.0))
