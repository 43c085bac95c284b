import itertools
import math

import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.best_of_n import best_of_n, best_of_n_kl, best_of_n_wins


@pytest.mark.parametrize(("n", "expected"), [(1, 5.5), (2, 7.3333), (5, 9.1667), (10, 10)])
def test_best_of_n_of_one_to_ten(n, expected):
    # Expectation of the largest of n drawn without replacement from 1..10: 11 n / (n + 1).
    rewards = np.arange(1.0, 11.0)[None]
    assert best_of_n(rewards, rewards, n) == pytest.approx([expected], rel=1e-4)


def test_best_of_n_by_a_reversed_proxy_falls():
    rewards = np.arange(1.0, 11.0)[None]
    assert best_of_n(-rewards, rewards, 10) == pytest.approx([1])


def test_samples_tied_in_the_proxy_share_their_weight():
    # All tied: the best of any n is the mean.
    assert best_of_n(np.zeros((1, 4)), np.array([[1.0, 2, 3, 6]]), 3) == pytest.approx([3])


@pytest.mark.parametrize(
    ("n", "kl"), [(1, 0), (2, 0.1931), (4, 0.6363), (16, 1.8351), (64, 3.1745)]
)
def test_best_of_n_kl_known_answers(n, kl):
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-5)


def test_best_of_n_equals_all_choices():
    """Ties included: the mean over all subsets of n, where tied bests share."""
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, (5, 6)).astype(float), rng.normal(size=(5, 6))
    expected = []
    for p, g in zip(proxy, gold, strict=True):
        chosen = [list(subset) for subset in itertools.combinations(range(6), 3)]
        expected.append(np.mean([g[s][p[s] == p[s].max()].mean() for s in chosen]))
    # Sharing within the subset and sharing over all tied samples are the same in the mean.
    assert best_of_n(proxy, gold, 3) == pytest.approx(expected)


def test_best_of_n_wins_n_of_n_plus_1_against_fresh_samples():
    proxy, fresh = np.random.default_rng(1).normal(size=(2, 4000, 8))
    for n in (1, 2, 4, 8):
        wins = best_of_n_wins(proxy, proxy, fresh, n)
        assert wins.mean() == pytest.approx(n / (n + 1), abs=3 * wins.std() / 4000**0.5)
    # By a gold that is the reversed proxy it loses as often.
    wins = best_of_n_wins(proxy, -proxy, -fresh, 4)
    assert wins.mean() == pytest.approx(1 / 5, abs=3 * wins.std() / 4000**0.5)


def test_best_of_n_ties_where_all_scores_are_equal():
    zeros = np.zeros((2, 4))
    assert best_of_n_wins(zeros, zeros, zeros[:, :1], 2) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("n", "exact"), [(2, 0.1308), (4, 0.4594), (16, 0.6930)])
def test_the_bound_is_above_the_kl_of_best_of_n_coin_flips(n, exact):
    # Best of n fair coins is tails with chance 2^-n: KL = Σ p log(p / .5).
    tails = 0.5**n
    kl = tails * math.log(2 * tails) + (1 - tails) * math.log(2 * (1 - tails))
    assert kl == pytest.approx(exact, abs=5e-5)
    assert best_of_n_kl(n) > kl
