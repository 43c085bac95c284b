"""How often a policy's response scores higher than another's to the same prompt."""

from typing import Any

import numpy as np

from rlhf_recipes.evaluation.statistics import (
    Array,
    detectable_effect,
    effective_size,
    mean_interval,
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
    difference = rewards[:, :, None] - reference[:, None, :]
    scores = np.where(difference > epsilon, 1.0, np.where(difference < -epsilon, 0.0, 0.5))
    return np.asarray(scores.mean(axis=(1, 2)), dtype=np.float64)


def win_rate(rewards: Array, reference: Array, epsilon: float = 0.0) -> dict[str, Any]:
    """Share of prompts won against the reference, ties one half, with its 95% interval and test.

    One sample a side: Wilson's interval at the tie-adjusted n. More: BCa bootstrap over prompts,
    and Wilson where that is undefined. wins, ties and losses count prompts, and p is the exact
    sign test on them. Six wins, two ties, two losses give 0.7. The rates of A over B and of B over
    A sum to 1.

    >>> ahead = np.array([[1.0], [1.0], [1.0], [0.0]])
    >>> behind = np.array([[0.0], [0.0], [1.0], [1.0]])
    >>> win_rate(ahead, behind)["value"]
    0.625
    """
    scores = win_scores(rewards, reference, epsilon)
    n = len(scores)
    value = float(scores.mean())
    wins, losses = int((scores > 0.5).sum()), int((scores < 0.5).sum())
    ties = n - wins - losses
    n_eff = effective_size(value, ties / n, n)
    method, interval = "wilson", wilson(value, n_eff)
    if rewards.shape[1] * reference.shape[1] > 1:
        n_eff = float(n)
        interval = wilson(value, n_eff)
        if np.ptp(scores) > 0:
            method, interval = "bootstrap", mean_interval(scores)
    return {
        "value": value,
        "ci": list(interval),
        "method": method,
        "n": n,
        "n_eff": n_eff,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "p": sign_test(wins, losses),
        "detectable": detectable_effect(float(scores.std(ddof=1)), n) if n > 1 else None,
    }
