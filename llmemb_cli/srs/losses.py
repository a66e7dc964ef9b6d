"""Training losses over positions (METHODS section 2). Every function returns the mean over positions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

GBCE_CALIBRATION = 0.75  # t of gSASRec (Petrov and Macdonald, RecSys 2023)


def bce(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of one positive and K negatives; with K = 1 SASRec's, up to its factor of two.

    Args:
        positive: (n,) float scores.
        negative: (n, K) float scores.
    """
    return gbce(positive, negative, beta=1.0)


def gbce(positive: torch.Tensor, negative: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised BCE: -(beta log s(r+) + sum_j log(1 - s(r_j))) / (K + 1) (Petrov and Macdonald, RecSys 2023)."""
    total = beta * F.logsigmoid(positive) + F.logsigmoid(-negative).sum(dim=1)
    return -(total / (negative.shape[1] + 1)).mean()


def gbce_beta(negatives: int, n_items: int, calibration: float = GBCE_CALIBRATION) -> float:
    """beta = a (t (1 - 1/a) + 1/a) with sampling rate a = K / (N - 1); t = 0 gives 1 (BCE)."""
    rate = negatives / max(n_items - 1, 1)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def bpr(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-log s(r+ - r_j), mean over positions and negatives (Rendle et al., UAI 2009)."""
    return -F.logsigmoid(positive[:, None] - negative).mean()


def sampled_softmax(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-r+ + log(e^r+ + sum_j e^r_j), negatives uniform (Klenitskiy and Vasilev, RecSys 2023)."""
    return (torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive).mean()


def cross_entropy(
    states: torch.Tensor, targets: torch.Tensor, table: torch.Tensor, bias: torch.Tensor | None, chunk: int = 2048
) -> torch.Tensor:
    """Softmax cross-entropy over all items, in chunks of positions so that memory stays bounded.

    Args:
        states: (n, d) float.
        targets: (n,) int64 items 1..N.
        table: (N + 1, d) float item embeddings; row 0, the padding, is not a candidate.
        bias: (N + 1,) float or None.
    """
    total = states.new_zeros(())
    for start in range(0, len(states), chunk):
        logits = states[start : start + chunk] @ table[1:].T
        if bias is not None:
            logits = logits + bias[1:]
        total = total + F.cross_entropy(logits, targets[start : start + chunk] - 1, reduction="sum")
    return total / max(len(states), 1)
