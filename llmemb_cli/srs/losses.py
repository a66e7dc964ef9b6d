"""Training losses (METHODS section 2), one number a target, so that batches can be split at will."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

GBCE_CALIBRATION = 0.75  # t of gSASRec (Petrov and Macdonald, RecSys 2023)


def bce(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of one positive and K negatives.

    With one negative SASRec's own sum, -(log s(r+) + log(1 - s(r-))), without a factor, so that weights of further
    losses (alpha) mean what they mean in the papers; with K > 1 divided by K + 1, as in gSASRec with t = 0.

    Args:
        positive: (n,) float scores.
        negative: (n, K) float scores.
    """
    total = F.logsigmoid(positive) + F.logsigmoid(-negative).sum(dim=1)
    count = negative.shape[1]
    return -total if count == 1 else -total / (count + 1)


def gbce(positive: torch.Tensor, negative: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised BCE: -(beta log s(r+) + sum_j log(1 - s(r_j))) / (K + 1) (Petrov and Macdonald, RecSys 2023)."""
    total = beta * F.logsigmoid(positive) + F.logsigmoid(-negative).sum(dim=1)
    return -total / (negative.shape[1] + 1)


def gbce_beta(negatives: int, n_items: int, calibration: float = GBCE_CALIBRATION) -> float:
    """beta = a (t (1 - 1/a) + 1/a) with sampling rate a = K / (N - 1), at most 1; t = 0 gives 1 (BCE)."""
    rate = min(negatives / max(n_items - 1, 1), 1.0)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def bpr(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-log s(r+ - r_j), mean over the negatives of a position (Rendle et al., UAI 2009)."""
    return -F.logsigmoid(positive[:, None] - negative).mean(dim=1)


def sampled_softmax(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """-r+ + log(e^r+ + sum_j e^r_j), negatives uniform (Klenitskiy and Vasilev, RecSys 2023)."""
    return torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive


def sce(positive: torch.Tensor, negative: torch.Tensor, weight: float) -> torch.Tensor:
    """-r+ + log(e^r+ + weight * sum_j e^r_j): a softmax whose negatives stand for many (Xu et al., arXiv 2402.06216).

    With weight = items / negatives the sum over uniform negatives is, on average, that over the catalogue.

    Args:
        positive: (n,) float scores.
        negative: (n, K) float scores; -inf where a negative is the positive itself.
    """
    return sampled_softmax(positive, negative + math.log(weight))


# Losses over one positive and K sampled negatives; `infonce` is a sampled softmax of cosines over a temperature.
SAMPLED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bce": bce,
    "bpr": bpr,
    "sampled-softmax": sampled_softmax,
    "infonce": sampled_softmax,
}
