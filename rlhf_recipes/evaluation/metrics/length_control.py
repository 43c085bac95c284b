"""The win rate at equal length: the effect of length is taken out by a logistic fit."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Estimate,
    Interval,
    ShareInterval,
    percentiles,
    prompt_draws,
    wilson,
)
from rlhf_recipes.evaluation.metrics.typed_json import Share

RIDGE = 1e-4
NEWTON_STEPS = 25
LARGEST_STEP = 4.0
CONVERGED = 1e-10
OVERLAP = 0.05
SEPARATED = 0.01


@dataclass(frozen=True)
class LengthControlled:
    """A win rate at equal length.

    Attributes:
        metric: Metric that the wins are by.
        value: Adjusted rate σ(θ), with its interval `ci`.
        raw: Unadjusted rate.
        longer: Fraction of prompts on which the first side is longer.
        overlaps: Whether neither side is longer on over 95% of the prompts.
        length_effect: φ, the effect of length on the log-odds.
        shift: Adjusted minus raw rate, with its interval from the same draws.
    """

    metric: str
    value: Share
    ci: ShareInterval
    raw: Share
    longer: Share
    overlaps: bool
    length_effect: float
    shift: Estimate


def length_controlled(scores: Array, length_difference: Array, metric: str) -> LengthControlled:
    """Compute the win rate at equal length by a logistic fit, with its 95% interval.

    logit P(win_i) = θ + φ tanh(d_i / rms(d)),   value = σ(θ)

    After AlpacaEval 2 (https://arxiv.org/abs/2404.04475), without its instruction difficulty, which
    needs many models. rms is not centered, so the rates of A over B and of B over A sum to 1. The
    interval refits on bootstrap draws of the prompts, where AlpacaEval takes the fit as certain.
    30 of 40 wins at +d and 5 of 20 at -d are 0.583 raw and 0.5 at equal length. This
    is a regression adjustment and does not prove what length caused.

    Args:
        scores: Wins per prompt in [0, 1], shape (prompts,).
        length_difference: Length minus the reference's length in tokens, shape (prompts,).
        metric: Name of what decided the wins, for the result.
    """
    raw = float(scores.mean())
    longer, shorter = (float(np.mean(side > 0)) for side in (length_difference, -length_difference))
    overlaps = max(longer, shorter) <= 1 - OVERLAP
    scale = np.sqrt(np.mean(np.square(length_difference)))
    tilt = np.tanh(length_difference / scale) if scale > 0 else np.zeros(len(scores))
    n = len(scores)
    if np.ptp(scores) == 0:  # nothing to adjust, and all draws are equal
        shift = Estimate(0.0, Interval(0.0, 0.0))
        return LengthControlled(metric, raw, wilson(raw, n), raw, longer, overlaps, 0.0, shift)
    draws = prompt_draws(n)
    start = _fit(scores, tilt, np.ones((1, n)), (0.0, 0.0))
    theta, phi = (float(side[0]) for side in start)
    value, drawn = float(expit(theta)), expit(_fit(scores, tilt, draws, (theta, phi))[0])
    shift = Estimate(value - raw, percentiles(drawn - draws @ scores / n))
    interval = percentiles(drawn)
    if interval.high - interval.low < SEPARATED:
        # Length separates wins from losses without error, and does so on every draw.
        interval = wilson(value, n)
    return LengthControlled(metric, value, interval, raw, longer, overlaps, phi, shift)


def _fit(
    scores: Array, tilt: Array, weights: Array, start: tuple[float, float]
) -> tuple[Array, Array]:
    """Fit θ and φ for each row of weights by Newton's method, with a slight ridge on φ alone.

    The ridge keeps φ finite where length separates wins from losses.
    """
    theta, phi = (np.full(len(weights), value) for value in start)
    for _ in range(NEWTON_STEPS):
        chance = expit(theta[:, None] + phi[:, None] * tilt)
        gap, curve = weights * (scores - chance), weights * chance * (1 - chance)
        g0, g1 = gap.sum(axis=1), gap @ tilt - RIDGE * phi
        h00, h01 = curve.sum(axis=1) + 1e-12, curve @ tilt
        h11 = curve @ np.square(tilt) + RIDGE
        determinant = h00 * h11 - h01**2
        steps = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
        steps = np.clip(steps, -LARGEST_STEP, LARGEST_STEP)
        theta, phi = theta + steps[0], phi + steps[1]
        if np.abs(steps).max() < CONVERGED:
            break
    return theta, phi
