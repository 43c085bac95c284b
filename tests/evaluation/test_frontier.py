import numpy as np
import pytest

from rlhf_recipes.evaluation.frontier import (
    best_of_n,
    best_of_n_kl,
    frontier_probability,
    pareto_frontier,
)

POINTS = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (3.0, 2.0)]


def test_known_frontier():
    assert pareto_frontier(POINTS) == [0, 1, 3]


def test_equal_points_both_stay():
    assert pareto_frontier([(1, 1), (1, 1), (2, 0)]) == [0, 1]


def test_order_does_not_matter():
    backwards = pareto_frontier(POINTS[::-1])
    assert {POINTS[::-1][i] for i in backwards} == {POINTS[i] for i in pareto_frontier(POINTS)}


def test_a_dominated_point_changes_nothing():
    assert pareto_frontier([*POINTS, (3.5, 1.5)]) == [0, 1, 3]


def test_frontier_equals_the_definition():
    rng = np.random.default_rng(0)
    points = [(float(kl), float(reward)) for kl, reward in rng.integers(0, 6, (40, 2))]
    expected = [
        i
        for i, (kl, reward) in enumerate(points)
        if not any(k <= kl and r >= reward and (k < kl or r > reward) for k, r in points)
    ]
    assert pareto_frontier(points) == expected


def test_probability_is_certain_for_clear_points_and_split_for_equal_ones():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (4, 100))
    kl = np.array([np.zeros(100), np.full(100, 1.0), np.full(100, 2.0), np.full(100, 3.0)])
    reward = np.array([[0.0], [5.0], [5.0], [1.0]]) + noise
    base, first, rival, clear_loser = frontier_probability(kl, reward)
    assert base == 1 and first == 1 and clear_loser == 0
    assert 0.01 < rival < 0.99


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


@pytest.mark.parametrize(("n", "kl"), [(1, 0), (2, 0.1931), (4, 0.6363), (16, 1.8351)])
def test_best_of_n_kl_known_answers(n, kl):
    assert best_of_n_kl(n) == pytest.approx(kl, abs=5e-5)
