"""Intervals and tests over prompts. Random draws are seeded, so equal data give equal numbers."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from rlhf_recipes.evaluation.metrics.typed_json import Count

Array = NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 9999
BATCH = 1000
DRAWS = 2000
SEED = 42
FAR = 10.0
MAD_TO_STD = 1.4826


class Interval(NamedTuple):
    """A 95% interval, with both ends in it."""

    low: float
    high: float


ShareInterval = Annotated[Interval, ("minimum", 0), ("maximum", 1)]
"""An interval of a fraction."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    ci: Interval


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        value: ρ; None where it is undefined, and then `reason` says why.
        ci: Interval by Bonett and Wright.
        n: Number of prompts or pairs.
    """

    value: Annotated[float, ("minimum", -1), ("maximum", 1)] | None
    ci: Interval | None
    n: Count
    reason: str | None = None


class Tested(Protocol):
    """A dataclass with the p-value of a test, and `p_holm` for the corrected one."""

    @property
    def p(self) -> float | None: ...


K = TypeVar("K")
Test = TypeVar("Test", bound=Tested | None)


def wilson(rate: float, n: float) -> Interval:
    """Compute Wilson's 95% score interval of a rate observed over n, which need not be whole.

    center = (p + z²/2n) / (1 + z²/n),   half width = z √(p(1-p)/n + z²/4n²) / (1 + z²/n)

    Wilson (1927). Unlike p ± 1.96 SE it stays inside [0, 1] and covers at small n and at rates
    near 0 or 1 (https://arxiv.org/abs/2503.01747). At 10 of 10 it is [0.722, 1].
    """
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    shrink = 1 + z**2 / n
    center = (rate + z**2 / (2 * n)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / shrink
    # At 0 and 1 the end is exact, but only up to the last bit of the sum.
    low = 0.0 if rate == 0 else max(0.0, center - half)
    high = 1.0 if rate == 1 else min(1.0, center + half)
    return Interval(float(low), float(high))


def effective_size(value: float, tie_rate: float, n: int) -> float:
    """Count the untied comparisons that would be as informative as n with ties at one half.

    A tie varies less than a win or a loss: Var(s) = p(1-p) - t/4, so
    n_eff = n p(1-p) / (p(1-p) - t/4), at most 4n. Without ties, or with nothing but ties, it is n.
    """
    binary = value * (1 - value)
    variance = binary - tie_rate / 4
    if tie_rate == 0 or variance <= 1e-12:
        return float(n)
    return min(n * binary / variance, 4.0 * n)


def mean_interval(values: Array) -> Interval:
    """Compute the 95% interval of a mean over prompts by the BCa bootstrap (Efron, 1987).

    The result is that of `scipy.stats.bootstrap`, in time and memory that grow with n and not with
    n². Equal values give a point. BCa is undefined only where all resampled means lie on one side
    of the observed one; with two values that differ, a quarter lie on either side.
    """
    mean = float(np.mean(values))
    # Values that are equal but for rounding have no skewness to correct for.
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
    """Count how often each of n values is in each bootstrap resample, shape (9999, n)."""
    rng = np.random.default_rng(SEED)
    counts = []
    for start in range(0, RESAMPLES, BATCH):
        size = min(BATCH, RESAMPLES - start)
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts.append(np.bincount(drawn.ravel(), minlength=size * n).astype(np.uint16))
    return np.concatenate(counts).reshape(RESAMPLES, n)


def _products(matrix: NDArray[Any], values: Array) -> Array:
    """Compute matrix @ values, converting one batch of rows to float at a time to save memory."""
    starts = range(0, len(matrix), BATCH)
    return np.concatenate([matrix[i : i + BATCH].astype(np.float64) @ values for i in starts])


def estimate(values: Array) -> Estimate:
    """Compute the mean over prompts with its interval."""
    return Estimate(float(np.mean(values)), mean_interval(values))


@lru_cache(maxsize=4)
def prompt_draws(n: int) -> Array:
    """Count how often each of n prompts is in each bootstrap draw, shape (2000, n).

    The draws are the same for every model and every quantity, so that results on them are joint.
    """
    rng = np.random.default_rng(SEED)
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=DRAWS), dtype=np.float64)


def percentiles(draws: Array) -> Interval:
    """Compute the 95% percentile interval of a quantity that was computed on each draw."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def student_half_width(n: Any) -> Any:
    """Return half the width of Student's 95% interval of a mean of n values, in standard errors."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(n - 1, 1))


def sign_test(wins: int, losses: int) -> float:
    """Compute the exact two-sided p of wins against losses under a fair coin. 6 to 2: 0.289."""
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def sign_flip_test(differences: Array) -> float:
    """Compute the two-sided p of a mean paired difference under random signs.

    p is the fraction of sign patterns whose |mean| is at least the observed one. All patterns are
    taken where 2ⁿ <= 9,999. Otherwise 9,999 are drawn and the observed one is counted as another,
    so that p is never 0. Five differences of one sign give 2/32 = 0.0625, the smallest p that five
    pairs allow.
    """
    if not np.any(differences):
        return 1.0
    signs, exact = _sign_patterns(len(differences))
    nonzero = np.flatnonzero(differences)
    if len(nonzero) < len(differences) / 2:  # most failures are on few prompts
        signs, differences = signs[:, nonzero], differences[nonzero]
    sums, observed = np.abs(_products(signs, differences)), abs(float(differences.sum()))
    # Sums of the same terms in another order differ in the last bits.
    extreme = int((sums >= observed - 1e-12 * np.abs(differences).sum()).sum())
    return extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)


@lru_cache(maxsize=4)
def _sign_patterns(n: int) -> tuple[NDArray[np.int8], bool]:
    """Return all patterns of n signs, or 9,999 drawn ones, and whether these are all.

    The patterns have the shape (patterns, n).
    """
    if 2**n <= RESAMPLES:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return (2 * bits - 1).astype(np.int8), True
    signs = np.array([-1, 1], dtype=np.int8)
    return np.random.default_rng(SEED).choice(signs, size=(RESAMPLES, n)), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm (1979), in the order given. [.01, .04, .03] -> [.03, .06, .06]."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def holm_corrected(tests: Mapping[K, Test], names: Collection[K] | None = None) -> dict[K, Test]:
    """Return the tests of one family with Holm's `p_holm` beside each `p`; None stays None.

    Args:
        tests: Dataclasses with their `p`, by name.
        names: The tests that make up the family, all by default; the others are returned unchanged.
    """
    family = {
        name: test.p
        for name, test in tests.items()
        if test is not None and test.p is not None and (names is None or name in names)
    }
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
    corrected: dict[K, Any] = dict(tests)
    return corrected | {n: replace(corrected[n], p_holm=p) for n, p in adjusted.items()}


def detectable_effect(std: float, n: int) -> float:
    """Return the smallest true mean that n prompts show with 80% power at the 5% level.

    (z_0.975 + z_0.8) std / √n = 2.80 standard errors.
    """
    return float((stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) * std / math.sqrt(n))


def prompts_needed(rate: float) -> int:
    """Count the untied prompts that tell a win rate from one half with 80% power at the 5% level.

    n = ((z_0.975 / 2 + z_0.8 √(p(1-p))) / (p - 1/2))². 60% needs 194.
    """
    spread = float(stats.norm.ppf(1 - ALPHA / 2)) / 2
    spread += float(stats.norm.ppf(POWER)) * math.sqrt(rate * (1 - rate))
    return math.ceil((spread / (rate - 0.5)) ** 2)


def rate_difference(rates: Array, reference: Array) -> tuple[float, Interval]:
    """Return the difference of two paired rates and Newcombe's (1998) hybrid score interval.

    Each side's Wilson limits are combined with the correlation φ of the pairs, so that 0 of n
    against 0 of n has an interval of some width. With several samples per prompt, n stays the
    number of prompts, which errs on the wide side.

    Args:
        rates: One rate per prompt, as is reference; 0 or 1 with one sample per prompt.
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


def rank_correlation(x: Array, y: Array) -> Correlation:
    """Compute Spearman's ρ with its interval tanh(atanh ρ ± z √((1 + ρ²/2)/(n-3))).

    Bonett and Wright (2000), Psychometrika 65.

    Args:
        x: One value per prompt, as is y.
    """
    n = len(x)
    if n < 4 or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        reason = "fewer than four prompts" if n < 4 else "one side does not vary"
        return Correlation(None, None, n, reason)
    rho = float(stats.spearmanr(x, y).statistic)
    if abs(rho) > 1 - 1e-12:
        return Correlation(rho, Interval(rho, rho), n)
    half = stats.norm.ppf(0.5 + CONFIDENCE / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    ends = np.tanh(np.arctanh(rho) + np.array([-half, half]))
    return Correlation(rho, Interval(float(ends[0]), float(ends[1])), n)


def outliers(scores: Array) -> NDArray[np.bool_]:
    """Mark each score that lies over ten robust standard deviations from the median.

    The robust standard deviation is 1.4826 times the median absolute deviation. Where over half of
    the scores are equal, it is the root mean square deviation of all but the farthest.
    """
    distance = np.abs(scores - np.median(scores))
    spread = MAD_TO_STD * float(np.median(distance))
    if spread == 0:
        spread = float(np.sqrt(np.mean(np.square(np.sort(distance.ravel())[:-1]))))
    return np.asarray(distance > FAR * spread) & (distance > 0)
