"""Calibration of a reward model: its margins as Bradley-Terry probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Estimate,
    ShareInterval,
    estimate,
    wilson,
)
from rlhf_recipes.evaluation.metrics.typed_json import Count, Share

BINS = 10
LARGEST_LOG_TEMPERATURE = 6.0


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose claimed probability lies between `from` and `to`.

    Attributes:
        claimed: Mean claimed probability.
        right: Fraction on which the model is right, with its interval `ci`.
    """

    from_: Share
    to: Share
    n: Count
    claimed: Share
    right: Share
    ci: ShareInterval


@dataclass(frozen=True)
class Calibration:
    """A reward model's margins as Bradley-Terry probabilities; see `calibration`."""

    nll: Estimate
    nll_of_chance: float
    brier: Estimate
    ece: Share
    temperature: Annotated[float, ("exclusiveMinimum", 0)] | None
    reliability: Sequence[ReliabilityBin]


def calibration(margins: Array) -> Calibration:
    """Compute NLL, Brier score, folded ECE with its bins, and the temperature that fits best.

    NLL = mean log(1 + e^-m), ln 2 for a model that knows nothing; Brier = mean (σ(m) - 1)²; both
    with intervals over pairs. ECE = Σ_bins n_b/n |right_b - claimed_b|: margins ln 3 three times
    and -ln 3 once claim 75% and are right on 75%, an error of 0. T minimizes the NLL of m / T on
    these pairs. Above 1 the model is overconfident; null if no finite T does.

    Args:
        margins: Score of the chosen minus that of the rejected text, shape (pairs,).
    """
    bins = reliability(margins)
    return Calibration(
        nll=estimate(np.logaddexp(0, -margins)),
        nll_of_chance=float(np.log(2)),
        brier=estimate(np.square(expit(margins) - 1)),
        ece=sum(row.n * abs(row.right - row.claimed) for row in bins) / len(margins),
        temperature=temperature(margins),
        reliability=bins,
    )


def reliability(margins: Array) -> list[ReliabilityBin]:
    """Return, per bin of σ(|m|) in [0.5, 1], its pairs, mean probability and fraction right.

    The curve is folded, because the chosen text is always listed first: the model claims that its
    preferred text wins with probability σ(|m|), is right where m > 0 and half right where m = 0.
    """
    claimed, right = expit(np.abs(margins)), (np.sign(margins) + 1) / 2
    index = np.minimum((2 * BINS * (claimed - 0.5)).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            from_=0.5 + b / (2 * BINS),
            to=0.5 + (b + 1) / (2 * BINS),
            n=int(inside.sum()),
            claimed=float(claimed[inside].mean()),
            right=float(right[inside].mean()),
            ci=wilson(float(right[inside].mean()), int(inside.sum())),
        )
        for b in range(BINS)
        if (inside := index == b).any()
    ]


def temperature(margins: Array) -> float | None:
    """Find T > 0 that minimizes mean log(1 + e^(-m/T)); None where the best T is 0 or infinite."""
    best = minimize_scalar(
        lambda log_t: float(np.logaddexp(0, -margins * np.exp(-log_t)).mean()),
        bounds=(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE),
        method="bounded",
    )
    bounded = abs(best.x) < LARGEST_LOG_TEMPERATURE - 0.01
    return float(np.exp(best.x)) if bounded and np.any(margins) else None
