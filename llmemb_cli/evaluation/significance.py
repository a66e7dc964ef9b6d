"""Is one run better than another, or is it chance? Paired tests over the same users, corrected for their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmemb_cli.seeds import numpy_rng

Test = Literal["t", "wilcoxon", "permutation", "bootstrap"]
Correction = Literal["holm", "bh", "none"]
RESAMPLES = 9999
NUMBERS_AT_ONCE = 4_000_000
DECIMALS = 12  # beyond which figures between 0 and 1 are equal


@dataclass(frozen=True)
class Paired:
    """What a paired test says about `ours - theirs`.

    Attributes:
        difference: mean difference.
        interval: of the mean difference, at the confidence asked for.
        p: two-sided.
        effect: Cohen's d of the differences, mean / standard deviation; None where they do not vary.
        wins: how many pairs ours is larger in.
        losses: how many it is smaller in.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    effect: float | None
    wins: int
    losses: int


def paired_test(
    ours: np.ndarray, theirs: np.ndarray, test: Test = "t", *, confidence: float = 0.95, seed: int = 0
) -> Paired:
    """Test whether the mean of (n,) `ours` differs from that of (n,) `theirs`, pair by pair.

    `t`: Student's paired t (the paper's); `wilcoxon`: signed ranks, equal pairs left out; `permutation`: signs of the
    differences flipped 9,999 times (all ways, where there are fewer); `bootstrap`: users drawn anew 9,999 times, with
    the percentile interval. The interval of the others is that of the t-test. Where all differences are equal, p is
    that of flipping their signs, whatever the test.
    """
    from scipy import stats

    # Means over seeds differ in their last bits (2/3 - 1/3 and 1 - 2/3): equal differences would be no ties, and
    # equal pairs would be won or lost.
    gaps = np.round(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64), DECIMALS)
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    mean = float(gaps.mean())
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    if spread <= 1e-12 * abs(mean) or len(gaps) < 2:
        # Nothing varies: t is infinite, or 0 / 0 where all pairs are equal, and two users who differ alike would be
        # beyond all doubt. Of the 2^n ways to set the signs, two give a mean as far from zero.
        return Paired(mean, (mean, mean), 2.0 ** (1 - len(gaps)) if mean else 1.0, None, wins, losses)
    fitted = stats.ttest_1samp(gaps, 0.0)
    low, high = fitted.confidence_interval(confidence)
    p = float(fitted.pvalue)
    if test == "wilcoxon":
        p = float(stats.wilcoxon(gaps[gaps != 0]).pvalue)
    elif test == "permutation":
        p = _permutation(gaps[gaps != 0], numpy_rng(seed, "permutation"))
    elif test == "bootstrap":
        p, low, high = _bootstrap(gaps, confidence, numpy_rng(seed, "bootstrap"))
    return Paired(mean, (float(low), float(high)), p, mean / spread, wins, losses)


def _permutation(gaps: np.ndarray, rng: np.random.Generator) -> float:
    from scipy import stats

    if len(gaps) == 1:  # either sign gives a mean as far from zero
        return 1.0
    batch = max(1, NUMBERS_AT_ONCE // len(gaps))
    result = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, batch=batch, vectorized=True, rng=rng
    )
    return float(result.pvalue)


def _bootstrap(gaps: np.ndarray, confidence: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """p and interval; p is how much of the distribution lies beyond zero, twice."""
    from scipy import stats

    batch = max(1, NUMBERS_AT_ONCE // len(gaps))
    result = stats.bootstrap(
        (gaps,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=batch,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        rng=rng,
    )
    means = result.bootstrap_distribution
    beyond = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
    interval = result.confidence_interval
    return min(1.0, 2 * beyond / (RESAMPLES + 1)), float(interval.low), float(interval.high)


def corrected(p_values: list[float], how: Correction) -> list[float]:
    """p-values adjusted for being many: `holm` (family-wise error) or `bh` (false discovery rate); same order."""
    if how == "none" or not p_values:
        return list(p_values)
    values = np.asarray(p_values)
    if how == "bh":
        from scipy import stats

        return [float(p) for p in stats.false_discovery_control(values, method="bh")]
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty(len(values))
    result[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in result]
