"""Best of n: what choosing among completions of the base by the proxy gains without training."""

import math

import numpy as np

from rlhf_recipes.evaluation.metrics.statistics import Array
from rlhf_recipes.evaluation.metrics.win_rate import pair_scores


def best_of_n_weights(proxy: Array, n: int) -> Array:
    """Return each of K samples' probability to be the best of n drawn from them.

    It is C(i-1, n-1) / C(K, n) = (C(i, n) - C(i-1, n)) / C(K, n) for the i-th smallest; samples
    tied in the proxy divide theirs equally. The result has the shape of proxy.

    Args:
        proxy: Shape (prompts, K).
    """
    size = proxy.shape[1]
    chosen = np.array([math.comb(i, n) / math.comb(size, n) for i in range(size + 1)])
    below = (proxy[:, None, :] < proxy[:, :, None]).sum(axis=2)
    equal = (proxy[:, None, :] == proxy[:, :, None]).sum(axis=2)
    return np.asarray((chosen[below + equal] - chosen[below]) / equal)


def best_of_n(proxy: Array, values: Array, n: int) -> Array:
    """Compute the expected value of the best of n base samples by the proxy, shape (prompts,).

    The estimator of WebGPT (https://arxiv.org/abs/2112.09332), unbiased for n <= K. The rewards
    1..10 have expectation 11n/(n+1).

    Args:
        proxy: Shape (prompts, K), as is values, which may be the proxy itself or gold.
    """
    return np.asarray((best_of_n_weights(proxy, n) * values).sum(axis=1))


def best_of_n_wins(
    proxy: Array, values: Array, opponent: Array, n: int, epsilon: float = 0.0
) -> Array:
    """Compute the probability that the best of n by the proxy beats an opponent, a tie one half.

    The result has the shape (prompts,). Against fresh samples of the same model, by a proxy without
    ties, its mean is n/(n+1).

    Args:
        proxy: Shape (prompts, K), as is values.
        opponent: Shape (prompts, any).
    """
    wins = pair_scores(values, opponent, epsilon).mean(axis=2)
    return np.asarray((best_of_n_weights(proxy, n) * wins).sum(axis=1))


def best_of_n_kl(n: int) -> float:
    """Return log n - (n-1)/n, an upper bound of the KL in nats, exact if no completion repeats.

    https://arxiv.org/abs/2401.01879. At n = 4 it is 0.636.
    """
    return math.log(n) - (n - 1) / n
