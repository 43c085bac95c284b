"""Intervals and tests over prompts. Draws are seeded: the same data give the same numbers."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

Array = NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 9999
BATCH = 1000
DRAWS = 2000
SEED = 42


class Interval(NamedTuple):
    """Ends of a 95% interval."""

    low: float
    high: float


def wilson(share: float, n: float) -> Interval:
    """Wilson's 95% score interval of a proportion observed over n, which need not be whole.

    centre = (p + z²/2n) / (1 + z²/n),   half width = z √(p(1-p)/n + z²/4n²) / (1 + z²/n)

    Wilson (1927). Unlike p ± 1.96 SE it stays inside [0, 1] and covers at small n and shares near
    0 or 1 (https://arxiv.org/abs/2503.01747). At 10 of 10 it is [0.722, 1].
    """
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    shrink = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / shrink
    # At 0 and 1 the end is exact, but only up to the last bit of the sum.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Interval(float(low), float(high))


def effective_size(value: float, tie_share: float, n: int) -> float:
    """The number of untied comparisons that would be as informative as n with ties at one half.

    A tie varies less than a win or a loss: Var(s) = p(1-p) - t/4, so
    n_eff = n p(1-p) / (p(1-p) - t/4), at most 4n. Without ties, or with nothing but ties, it is n.
    """
    binary = value * (1 - value)
    variance = binary - tie_share / 4
    if tie_share == 0 or variance <= 1e-12:
        return float(n)
    return min(n * binary / variance, 4.0 * n)


def mean_interval(values: Array) -> Interval:
    """95% interval of a mean over prompts: BCa bootstrap (Efron, 1987); equal values give a point.

    As `scipy.stats.bootstrap` computes it, in time and memory that grow with n and not with n².
    BCa is undefined only where all resampled means lie on one side of the observed one. Of two
    values that differ, a quarter lie on either.
    """
    mean = float(np.mean(values))
    # What is equal but for rounding has no skewness to correct for.
    if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(mean, mean)
    resampled = _products(_resamples(len(values)), values) / len(values)
    # Means of the same values in another order differ in the last bits.
    same = 1e-12 * float(np.abs(values).max())
    below = np.count_nonzero(resampled < mean - same) + np.count_nonzero(resampled <= mean + same)
    bias = ndtri(below / (2 * RESAMPLES))
    deviations = values - mean
    skewness = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    shifted = bias + ndtri(np.array([1 - CONFIDENCE, 1 + CONFIDENCE]) / 2)
    low, high = np.quantile(resampled, ndtr(bias + shifted / (1 - skewness * shifted)))
    return Interval(float(low), float(high))


@lru_cache(maxsize=4)
def _resamples(n: int) -> NDArray[np.uint16]:
    """How often each of n values is in each bootstrap resample, shape (9999, n)."""
    rng = np.random.default_rng(SEED)
    counts = []
    for start in range(0, RESAMPLES, BATCH):
        size = min(BATCH, RESAMPLES - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts.append(np.bincount(drawn.ravel(), minlength=size * n).astype(np.uint16))
    return np.concatenate(counts).reshape(RESAMPLES, n)


def _products(matrix: NDArray[Any], values: Array) -> Array:
    """matrix @ values, with a batch of rows as floats at a time: all of them take much memory."""
    starts = range(0, len(matrix), BATCH)
    return np.concatenate([matrix[i : i + BATCH].astype(np.float64) @ values for i in starts])


def estimate(values: Array) -> dict[str, Any]:
    """The mean over prompts as `value`, with its `ci`."""
    return {"value": float(np.mean(values)), "ci": mean_interval(values)}


@lru_cache(maxsize=4)
def prompt_draws(n: int) -> Array:
    """How often each of n prompts is in each bootstrap draw, shape (2000, n).

    The same for every model and every quantity, so that what is computed on them is joint.
    """
    rng = np.random.default_rng(SEED)
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=DRAWS), dtype=np.float64)


def percentiles(draws: Array) -> Interval:
    """The 95% percentile interval of a quantity that was computed on each draw."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def student_half_width(n: Any) -> Any:
    """Standard errors from the mean of n values to the end of Student's 95% interval."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(n - 1, 1))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of wins against losses under a fair coin, ties left out. 6 to 2: 0.289."""
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def sign_flip_test(differences: Array) -> float:
    """Two-sided p of a mean paired difference under random signs: exact where 2ⁿ <= 9,999.

    p = the share of sign patterns whose |mean| is at least the observed one; of 9,999 drawn
    patterns the observed one is counted as another, so that p is never 0. Five differences of one
    sign give 2/32 = 0.0625, the smallest p that five pairs allow.
    """
    if not np.any(differences):
        return 1.0
    signs, exact = _sign_patterns(len(differences))
    sums, seen = np.abs(_products(signs, differences)), abs(float(differences.sum()))
    # Sums of the same terms in another order differ in the last bits.
    extreme = int((sums >= seen - 1e-12 * np.abs(differences).sum()).sum())
    return extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)


@lru_cache(maxsize=4)
def _sign_patterns(n: int) -> tuple[NDArray[np.int8], bool]:
    """All patterns of n signs, or 9,999 drawn ones, shape (patterns, n), and whether it is all."""
    if 2**n <= RESAMPLES:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return (2 * bits - 1).astype(np.int8), True
    signs = np.array([-1, 1], dtype=np.int8)
    return np.random.default_rng(SEED).choice(signs, size=(RESAMPLES, n)), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given. [.01, .04, .03] -> [.03, .06, .06]."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def correct(tests: Sequence[dict[str, Any]]) -> None:
    """Give each test of a family, which has its `p`, Holm's `p_holm`."""
    for test, p_holm in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p_holm


def detectable_effect(deviation: float, n: int) -> float:
    """Smallest true difference of a mean that n prompts show with 80% power at the 5% level.

    (z_0.975 + z_0.8) sd / √n = 2.80 standard errors.
    """
    return float((stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) * deviation / math.sqrt(n))


def prompts_needed(share: float) -> int:
    """Untied prompts that tell a win rate from one half with 80% power at the 5% level.

    n = ((z_0.975 / 2 + z_0.8 √(p(1-p))) / (p - 1/2))². 60% needs 194.
    """
    spread = float(stats.norm.ppf(1 - ALPHA / 2)) / 2
    spread += float(stats.norm.ppf(POWER)) * math.sqrt(share * (1 - share))
    return math.ceil((spread / (share - 0.5)) ** 2)


def rate_difference(rates: Array, reference: Array) -> tuple[float, Interval]:
    """Difference of two paired proportions and Newcombe's (1998) hybrid score interval.

    Each side's Wilson limits are combined with the correlation φ of the pairs, so that 0 of n
    against 0 of n has an interval of some width. With several samples a prompt, n stays the
    number of prompts, which errs on the wide side.

    Args:
        rates: One rate per prompt, as is reference; 0 or 1 with one sample a prompt.
    """
    p, q, n = float(np.mean(rates)), float(np.mean(reference)), len(rates)
    (p_low, p_high), (q_low, q_high) = wilson(p, n), wilson(q, n)
    varied = np.ptp(rates) > 0 and np.ptp(reference) > 0
    phi = float(np.corrcoef(rates, reference)[0, 1]) if varied else 0.0
    below, above = p - p_low, p_high - p
    other_below, other_above = q - q_low, q_high - q
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * other_above + other_above**2))
    up = math.sqrt(max(0.0, above**2 - 2 * phi * above * other_below + other_below**2))
    return p - q, Interval(p - q - down, p - q + up)


def rank_correlation(x: Array, y: Array) -> dict[str, Any]:
    """Spearman's ρ with the interval tanh(atanh ρ ± z √((1 + ρ²/2)/(n-3))), or null with a reason.

    Bonett and Wright (2000), Psychometrika 65. One value per prompt on each side.
    """
    n = len(x)
    if n < 4 or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        reason = "fewer than four prompts" if n < 4 else "one side does not vary"
        return {"value": None, "ci": None, "n": n, "reason": reason}
    rho = float(stats.spearmanr(x, y).statistic)
    if abs(rho) > 1 - 1e-12:
        return {"value": rho, "ci": [rho, rho], "n": n}
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    ci = [float(np.tanh(np.arctanh(rho) - half)), float(np.tanh(np.arctanh(rho) + half))]
    return {"value": rho, "ci": ci, "n": n}
