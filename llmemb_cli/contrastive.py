"""The contrastive losses of SCFT and of alignment: LLMEmb Eq. 4 and 7 and their variants (METHODS section 7)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from llmemb_cli.errors import BadDataError

# Where the temperature starts: cosines lie within 1 of each other, raw inner products of LLM states far apart
# (the authors' code starts at 3).
START_TEMPERATURE = {"infonce": 0.07, "paper": 3.0, "soft": 3.0}


def contrastive_loss(
    kind: str,
    left: torch.Tensor,
    right: torch.Tensor,
    temperature: torch.Tensor,
    same: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrast row i of `left` with all rows of `right` and the other way round; mean of both directions.

    Args:
        kind: `infonce`: cosine similarity, the positive stands in the denominator. `paper`: Eq. 4, inner
            products, the positive is left out of the denominator (no lower bound); items without a negative
            take no part. `soft`: the authors' code, inner products against soft targets from the similarities
            within each side.
        left, right: (n, d) float, two views of the same n items.
        temperature: scalar tensor, positive.
        same: (n, n) bool or None; pairs that are equal although they are not the same row (duplicate prompts)
            and so are no negatives. The diagonal is ignored; `soft` needs none, its targets know equal rows.

    Raises:
        BadDataError: `paper` and no item has a negative.
    """
    if kind == "soft":
        return _soft(left, right, temperature)
    if kind == "infonce":
        left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
    logits = left @ right.T / temperature
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    positive = logits.diagonal()
    if kind == "paper":
        if same is None and len(logits) > 1:
            return _without_diagonal(logits, positive, diagonal)
        return _without_positive(logits, positive, diagonal if same is None else same | diagonal)
    if same is not None:
        logits = logits.masked_fill(same & ~diagonal, -torch.inf)
    both = torch.logsumexp(logits, dim=1) + torch.logsumexp(logits, dim=0)
    return (both / 2 - positive).mean()


def _without_diagonal(logits: torch.Tensor, positive: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """`_without_positive` where every item has negatives: nothing has to be waited for on a device to know it."""
    losses = [
        (torch.logsumexp(part.masked_fill(diagonal, -torch.inf).contiguous(), dim=1) - positive).mean()
        for part in (logits, logits.T)
    ]
    return (losses[0] + losses[1]) / 2


def _without_positive(logits: torch.Tensor, positive: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    losses = []
    for part, out in ((logits, left_out), (logits.T, left_out.T)):
        contrasted = ~out.all(dim=1)
        if not bool(contrasted.any()):
            raise BadDataError(
                "no item of the batch has a negative: all its prompts are equal",
                hint="look at `llmemb prompt`; give items more attributes or lower scft.drop_ratio",
            )
        below = part[contrasted].masked_fill(out[contrasted], -torch.inf)
        losses.append((torch.logsumexp(below, dim=1) - positive[contrasted]).mean())
    return (losses[0] + losses[1]) / 2


def _soft(left: torch.Tensor, right: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Z = XY'/t, P = softmax((XX' + YY')/2 t), mean of the cross-entropies of Z to P and of Z' to P'."""
    logits = left @ right.T / temperature
    targets = torch.softmax((left @ left.T + right @ right.T) / 2 * temperature, dim=1)
    rows = -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)
    columns = -(targets.T * torch.log_softmax(logits.T, dim=1)).sum(dim=1)
    return ((rows + columns) / 2).mean()
