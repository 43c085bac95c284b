import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.frontier import (
    dominance,
    frontier_probability,
    gain_at,
    matched_difference,
)

POINTS = [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (3.0, 2.0)]


def frontier(points):
    kl, reward = np.array(points, dtype=float).T
    return np.flatnonzero(~dominance(kl, reward).any(axis=0)).tolist()


def test_known_frontier():
    assert frontier(POINTS) == [0, 1, 3]


def test_equal_points_both_stay():
    assert frontier([(1, 1), (1, 1), (2, 0)]) == [0, 1]


def test_dominance_equals_the_definition():
    points = np.random.default_rng(0).integers(0, 6, (40, 2)).astype(float)
    found = dominance(*points.T)
    for a, (kl, reward) in enumerate(points):
        for b, (k, r) in enumerate(points):
            assert found[a, b] == (kl <= k and reward >= r and (kl < k or reward > r))


def test_probability_is_certain_for_clear_points_and_split_for_equal_ones():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (4, 100))
    kl = np.array([np.zeros(100), np.full(100, 1.0), np.full(100, 2.0), np.full(100, 3.0)])
    reward = np.array([[0.0], [5.0], [5.0], [1.0]]) + noise
    (base, first, rival, clear_loser), dominating = frontier_probability(kl, reward)
    # first and rival both dominate the last, and one of the two is enough.
    assert dominating[1, 3] == 1 and dominating[0, 1] == 0
    assert dominating[1, 2] == pytest.approx(1 - rival)
    assert base == 1 and first == 1 and clear_loser == 0
    assert 0.01 < rival < 0.99


def test_a_path_is_linear_in_the_root_of_kl():
    # From (0, 0) over (√KL, gain) = (1, 1) to (3, 2): at √KL = 2 it is 1.5, at 0.5 it is 0.5.
    kl, gain = np.array([9.0, 1.0]), np.array([2.0, 1.0])
    assert gain_at(4.0, kl, gain) == pytest.approx(1.5)
    assert gain_at(0.25, kl, gain) == pytest.approx(0.5)


def test_paths_are_compared_at_the_largest_kl_that_both_reach():
    # First: √KL 1, 3 gain 1, 2; second: √KL 1, 2 gain .5, 1. At √KL = 2: 1.5 against 1.
    def path(kl, gain):
        return np.repeat(np.array(kl)[:, None], 50, 1), np.repeat(np.array(gain)[:, None], 50, 1)

    first, second = path([1.0, 9.0], [1.0, 2.0]), path([1.0, 4.0], [0.5, 1.0])
    at, gap, ends, p = matched_difference((first[0], second[0]), (first[1], second[1]))
    assert (at, gap) == pytest.approx((4, 0.5))
    assert ends == pytest.approx([0.5, 0.5])  # without noise there is nothing to be unsure of
    assert p == pytest.approx(2 / 2001)  # no draw of 2,000 is on the other side


def test_equal_paths_do_not_differ():
    rng = np.random.default_rng(3)
    kl, gain = np.array([[1.0], [4.0]]) + np.zeros((2, 60)), rng.normal(1, 1, (2, 60))
    _, gap, ends, p = matched_difference((kl, kl), (gain, gain))
    assert (gap, p) == (0, 1) and ends == (0, 0)


def test_a_model_can_be_dominated_for_certain_and_by_no_single_one():
    # On each draw one of two rivals is ahead of the third model, and now it is this, now that one.
    rng = np.random.default_rng(2)
    swing = rng.normal(0, 1, 100)
    kl = np.array([np.zeros(100), np.full(100, 1.0), np.full(100, 1.0), np.full(100, 2.0)])
    reward = np.array([np.full(100, -9.0), swing - swing.mean(), swing.mean() - swing, 0 * swing])
    on_front, dominating = frontier_probability(kl, reward)
    assert on_front[3] < 0.05
    assert (dominating[:, 3] < 0.95).all() and (dominating[1:3, 3] > 0.05).all()
