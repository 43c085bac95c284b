"""Win rates: how often one model's completion scores higher than another's to the same prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Interval,
    ShareInterval,
    detectable_effect,
    effective_size,
    mean_interval,
    sign_flip_test,
    sign_test,
    wilson,
)
from rlhf_recipes.evaluation.metrics.typed_json import FLAT, Count, Share


@dataclass(frozen=True)
class Counts:
    """Comparisons, and how many of them were won, tied and lost."""

    n: Count
    wins: Count
    ties: Count
    losses: Count


@dataclass(frozen=True)
class Readable:
    """Verdicts of a judge that could be read: n of all, and the fraction that is."""

    n: Count
    of: Count
    fraction: Share


@dataclass(frozen=True)
class WinRate:
    """How often one side scores higher than the other, a tie counting one half.

    Attributes:
        value: Mean over prompts of the fraction of pairs of completions won.
        ci: Its interval, by `method`.
        n: Number of prompts.
        n_eff: Number of untied comparisons that would be as informative.
        wins: Number of prompts won, as are `ties` and `losses`.
        pairs: Pairs of completions; None for best of n.
        readable: Of a judge's verdicts; None for a metric.
        p: Of the `test` against one half.
        detectable: Smallest true difference from one half found with 80% power; None if unknown.
        p_holm: Corrected p; None where nothing is claimed.
    """

    value: Share
    ci: ShareInterval
    method: Literal["wilson", "bootstrap"]
    n: Count
    n_eff: float
    wins: Count
    ties: Count
    losses: Count
    pairs: Counts | None
    readable: Readable | None
    p: Share
    test: Literal["sign", "sign flip"]
    detectable: float | None
    p_holm: Share | None = None


@dataclass(frozen=True)
class WinRates:
    """Win rates by metric and judge, None where there is none. `rates[metric]` must be there."""

    by_metric: Mapping[str, WinRate | None] = field(metadata=FLAT)

    def __getitem__(self, metric: str) -> WinRate:
        rate = self.by_metric[metric]
        if rate is None:
            raise KeyError(metric)
        return rate

    def get(self, metric: str) -> WinRate | None:
        """Return the win rate by a metric or judge, None if there is none."""
        return self.by_metric.get(metric)


def win_scores(rewards: Array, reference: Array, epsilon: float = 0.0) -> Array:
    """Compute the fraction of completion pairs won per prompt, a tie counting one half.

    u_i = mean over (a, b) of s(r_ia - ref_ib),   s = 1 above epsilon, 0 below -epsilon, else 1/2

    This U-statistic uses all pairs of the two sides' samples and gives one independent value per
    prompt. Rewards [1, 3] against [0, 2] give 0.75.

    Args:
        rewards: Shape (prompts, samples), as is reference; the numbers of samples may differ.
        epsilon: Differences up to this size are ties.
    """
    return np.asarray(pair_scores(rewards, reference, epsilon).mean(axis=(1, 2)))


def pair_scores(rewards: Array, reference: Array, epsilon: float) -> Array:
    """Score each pair of completions 1, 1/2 or 0, shape (prompts, samples, reference samples)."""
    gap = rewards[:, :, None] - reference[:, None, :]
    return np.where(gap > epsilon, 1.0, np.where(gap < -epsilon, 0.0, 0.5))


def win_rate(rewards: Array, reference: Array, epsilon: float = 0.0) -> WinRate:
    """Compute the win rate over the reference, ties one half, with its 95% interval and test.

    With one sample per side the interval is Wilson's at the tie-adjusted n, and the test is the
    exact sign test on wins and losses. With more it is the BCa bootstrap over prompts (Wilson where
    that is undefined), and the sign-flip test of the scores' distance from one half. wins, ties and
    losses count prompts, `pairs` counts pairs of completions: value = (wins + ties / 2) / n of
    these. Six wins, two ties, two losses give 0.7. The rates of A over B and of B over A sum to 1.

    >>> ahead = np.array([[1.0], [1.0], [1.0], [0.0]])
    >>> behind = np.array([[0.0], [0.0], [1.0], [1.0]])
    >>> win_rate(ahead, behind).value
    0.625
    """
    outcomes = pair_scores(rewards, reference, epsilon)
    single = rewards.shape[1] * reference.shape[1] == 1
    return summary(outcomes.mean(axis=(1, 2)), single=single, outcomes=outcomes)


def summary(scores: Array, *, single: bool, outcomes: Array | None = None) -> WinRate:
    """Summarize one score per prompt as the win rate that `win_rate` describes.

    Args:
        scores: Shape (prompts,).
        single: Whether each score is one comparison: 0, 1/2 or 1.
        outcomes: 0, 1/2 or 1 per comparison, counted as `pairs`; their mean is that of scores.
    """
    n = len(scores)
    value = float(scores.mean())
    wins, losses = int((scores > 0.5).sum()), int((scores < 0.5).sum())
    ties = n - wins - losses
    n_eff = effective_size(value, ties / n, n) if single else float(n)
    varied = bool(np.ptp(scores) > 0)
    bootstrap = varied and not single
    low, high = mean_interval(scores) if bootstrap else wilson(value, n_eff)
    return WinRate(
        value=value,
        ci=Interval(max(0.0, low), min(1.0, high)),
        method="bootstrap" if bootstrap else "wilson",
        n=n,
        n_eff=n_eff,
        wins=wins,
        ties=ties,
        losses=losses,
        pairs=None if outcomes is None else counts(outcomes),
        readable=None,
        p=sign_test(wins, losses) if single else sign_flip_test(scores - 0.5),
        test="sign" if single else "sign flip",
        detectable=detectable_effect(float(scores.std(ddof=1)), n) if varied else None,
    )


def counts(outcomes: Array) -> Counts:
    """Count the comparisons, and those that were won, tied and lost."""
    wins, losses = int((outcomes > 0.5).sum()), int((outcomes < 0.5).sum())
    return Counts(int(outcomes.size), wins, int(outcomes.size) - wins - losses, losses)
