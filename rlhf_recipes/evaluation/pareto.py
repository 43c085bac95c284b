"""Points of reward against KL: dominance, the ceiling, and paths compared at one KL."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.statistics import CONFIDENCE, SEED, Array

DRAWS = 2000


def dominance(kl: Array, reward: Array) -> NDArray[np.bool_]:
    """Whether point a dominates point b at [..., a, b]: no more KL, no less reward, one strictly.

    Args:
        kl: Shape (..., points), as is reward.
    """
    less_kl = kl[..., :, None] - kl[..., None, :]
    more_reward = reward[..., :, None] - reward[..., None, :]
    strict = (less_kl < 0) | (more_reward > 0)
    return np.asarray((less_kl <= 0) & (more_reward >= 0) & strict)


def pareto_frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (KL, reward) points that no other dominates. Duplicates stay.

    >>> pareto_frontier([(0, 0), (1, 1), (2, 0.5), (3, 2)])
    [0, 1, 3]
    """
    kl, reward = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return [int(i) for i in np.flatnonzero(~dominance(kl, reward).any(axis=0))]


def prompt_draws(n: int) -> Array:
    """Weights of n prompts in each bootstrap draw, shape (draws, n); the same for every model."""
    rng = np.random.default_rng(SEED)
    return np.asarray(rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n)


def frontier_probability(kl: Array, reward: Array) -> list[float]:
    """Each model's share of bootstrap draws of the prompts, taken jointly, in which it is on it.

    Args:
        kl: Shape (models, prompts), as is reward; the reference is one of the models.
    """
    weights = prompt_draws(kl.shape[1])
    beaten = dominance(weights @ kl.T, weights @ reward.T).any(axis=1)
    return [float(p) for p in 1 - beaten.mean(axis=0)]


def within_prompt_sd(rewards: Array) -> float | None:
    """Pooled standard deviation of a prompt's rewards, None from one sample a prompt."""
    if rewards.shape[1] < 2:
        return None
    return float(np.sqrt(rewards.var(axis=1, ddof=1).mean()))


def efficiency(gain: float, sd: float, kl: float) -> float:
    """Share of the ceiling that a policy reached: gain / (sd √(2 KL)).

    A reward that is sub-Gaussian under the reference cannot gain more than sd √(2 KL)
    (https://arxiv.org/abs/2406.05883), and tilting a Gaussian reaches it. Skewed rewards may
    exceed 1.

    Args:
        gain: In units of the reward, as is sd, its deviation among base's answers to one prompt.
        kl: Nats per response.
    """
    return gain / (sd * math.sqrt(2 * kl))


def gain_at(kl: float, path_kl: Array, path_gain: Array) -> float:
    """Gain of a path of checkpoints at a KL, interpolated linearly in √KL from (0, 0)."""
    order = np.argsort(path_kl, kind="stable")
    roots = np.sqrt(np.clip(path_kl[order], 0, None))
    gains = np.concatenate([[0.0], path_gain[order]])
    return float(np.interp(math.sqrt(kl), np.concatenate([[0.0], roots]), gains))


def matched_difference(
    kl: tuple[Array, Array], gain: tuple[Array, Array]
) -> tuple[float, float, list[float], float]:
    """Gain of one path of checkpoints over another at the largest KL that both reach.

    Returns that KL, the difference, its 95% interval and two-sided p from bootstrap draws of the
    prompts, on each of which the KL and both paths are found anew.

    Args:
        kl: Of both paths, each of shape (checkpoints, prompts), as is gain.
    """
    draws = prompt_draws(kl[0].shape[1])
    draws = np.vstack([np.full(draws.shape[1], 1 / draws.shape[1]), draws])
    paths = [(draws @ k.T, draws @ g.T) for k, g in zip(kl, gain, strict=True)]
    shared = np.clip(np.minimum(paths[0][0].max(axis=1), paths[1][0].max(axis=1)), 0, None)
    first, second = (
        np.array([gain_at(*row) for row in zip(shared, *path, strict=True)]) for path in paths
    )
    gaps = (first - second)[1:]
    ends = np.quantile(gaps, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    rarer = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (len(gaps) + 1))
    return float(shared[0]), float(first[0] - second[0]), ends.tolist(), p
