"""How often a policy's response scores higher than another's to the same prompt."""

from typing import Any

import numpy as np

from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    detectable_effect,
    effective_size,
    mean_interval,
    sign_flip_test,
    sign_test,
    wilson,
)


def win_scores(rewards: Array, reference: Array, epsilon: float = 0.0) -> Array:
    """One number per prompt: the share of response pairs won, a tie counting one half.

    u_i = mean over (a, b) of s(r_ia - ref_ib),   s = 1 above epsilon, 0 below -epsilon, else 1/2

    A U-statistic: all pairs of the two sides' samples are used, and what remains is one
    independent value per prompt. Rewards [1, 3] against [0, 2] give 0.75.

    Args:
        rewards: Shape (prompts, samples), as is reference; the numbers of samples may differ.
        epsilon: Differences up to this size are ties.
    """
    return np.asarray(pair_scores(rewards, reference, epsilon).mean(axis=(1, 2)))


def pair_scores(rewards: Array, reference: Array, epsilon: float) -> Array:
    """1, 1/2 or 0 for each pair of responses to a prompt, shape (prompts, samples, samples)."""
    gap = rewards[:, :, None] - reference[:, None, :]
    return np.where(gap > epsilon, 1.0, np.where(gap < -epsilon, 0.0, 0.5))


def win_rate(rewards: Array, reference: Array, epsilon: float = 0.0) -> dict[str, Any]:
    """Share of prompts won against the reference, ties one half, with its 95% interval and test.

    One sample a side: Wilson's interval at the tie-adjusted n, and the exact sign test on wins and
    losses. More: BCa bootstrap over prompts (Wilson where it is undefined), and the sign-flip test
    of the scores' distance from one half. wins, ties and losses count prompts, `pairs` the pairs of
    responses: value = (wins + ties / 2) / n of these. Six wins, two ties, two losses give 0.7. The
    rates of A over B and of B over A sum to 1.

    >>> ahead = np.array([[1.0], [1.0], [1.0], [0.0]])
    >>> behind = np.array([[0.0], [0.0], [1.0], [1.0]])
    >>> win_rate(ahead, behind)["value"]
    0.625
    """
    outcomes = pair_scores(rewards, reference, epsilon)
    single = rewards.shape[1] * reference.shape[1] == 1
    return summary(outcomes.mean(axis=(1, 2)), single=single, outcomes=outcomes)


def summary(scores: Array, *, single: bool, outcomes: Array | None = None) -> dict[str, Any]:
    """The win rate of one score per prompt, as `win_rate` describes it.

    Args:
        scores: Shape (prompts,).
        single: Whether each score is one comparison: 0, 1/2 or 1.
        outcomes: 0, 1/2 or 1 of each comparison, counted as `pairs`; their mean is that of scores.
    """
    n = len(scores)
    value = float(scores.mean())
    wins, losses = int((scores > 0.5).sum()), int((scores < 0.5).sum())
    ties = n - wins - losses
    n_eff = effective_size(value, ties / n, n) if single else float(n)
    varied = bool(np.ptp(scores) > 0)
    bootstrap = varied and not single
    return {
        "value": value,
        "ci": np.clip(mean_interval(scores), 0, 1).tolist() if bootstrap else wilson(value, n_eff),
        "method": "bootstrap" if bootstrap else "wilson",
        "n": n,
        "n_eff": n_eff,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "pairs": None if outcomes is None else counts(outcomes),
        "readable": None,
        "p": sign_test(wins, losses) if single else sign_flip_test(scores - 0.5),
        "test": "sign" if single else "sign flip",
        "detectable": detectable_effect(float(scores.std(ddof=1)), n) if varied else None,
    }


def counts(outcomes: Array) -> dict[str, int]:
    """How many comparisons there are, and how many were won, tied and lost."""
    wins, losses = int((outcomes > 0.5).sum()), int((outcomes < 0.5).sum())
    ties = int(outcomes.size) - wins - losses
    return {"n": int(outcomes.size), "wins": wins, "ties": ties, "losses": losses}
