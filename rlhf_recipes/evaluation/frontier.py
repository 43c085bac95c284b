"""Reward against KL: who is dominated, how surely, and what best-of-n of the base would give."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.statistics import SEED, Array

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


def frontier_probability(kl: Array, reward: Array) -> list[float]:
    """Each model's share of bootstrap draws of the prompts, taken jointly, in which it is on it.

    Args:
        kl: Shape (models, prompts), as is reward; the reference is one of the models.
    """
    n = kl.shape[1]
    weights = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    beaten = dominance(weights @ kl.T, weights @ reward.T).any(axis=1)
    return [float(p) for p in 1 - beaten.mean(axis=0)]


def best_of_n_weights(proxy: Array, n: int) -> Array:
    """How often each of K samples is the best of n by the proxy, averaged over choices of n.

    The i-th smallest has weight C(i-1, n-1) / C(K, n); samples tied in the proxy share theirs.
    The estimator of WebGPT (https://arxiv.org/abs/2112.09332), unbiased for n <= K. The rewards
    1..10 have expectation 11n/(n+1).

    Args:
        proxy: Shape (K,).
    """
    size = len(proxy)
    values, inverse = np.unique(proxy, return_inverse=True)
    ranked = np.array([math.comb(i, n - 1) for i in range(size)]) / math.comb(size, n)
    counts = np.bincount(inverse, minlength=len(values))
    shared = np.add.reduceat(ranked, np.concatenate([[0], np.cumsum(counts)[:-1]])) / counts
    return np.asarray(shared[inverse], dtype=np.float64)


def best_of_n(proxy: Array, values: Array, n: int) -> Array:
    """Expected value per prompt of the best of n base samples by the proxy, shape (prompts,).

    Args:
        proxy: Shape (prompts, K), as is values, which may be the proxy itself or gold.
    """
    return np.array([best_of_n_weights(p, n) @ v for p, v in zip(proxy, values, strict=True)])


def best_of_n_kl(n: int) -> float:
    """log n - (n-1)/n, an upper bound of the KL in nats, exact where no response repeats.

    https://arxiv.org/abs/2401.01879. At n = 4 it is 0.636.
    """
    return math.log(n) - (n - 1) / n
