import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.win_rate import win_rate, win_scores


def column(values):
    return np.array(values, dtype=float)[:, None]


def test_a_tie_counts_one_half():
    # 6 wins, 2 ties, 2 losses: (6 + 1) / 10.
    found = win_rate(column([1] * 6 + [0] * 2 + [-1] * 2), column([0] * 10))
    assert found.value == pytest.approx(0.7)
    assert (found.wins, found.ties, found.losses) == (6, 2, 2)
    assert found.p == pytest.approx(0.2890625)
    assert found.n_eff == pytest.approx(13.125)


def test_36_wins_17_ties_47_losses_is_no_detectable_loss():
    found = win_rate(column([1] * 36 + [0] * 17 + [-1] * 47), column([0] * 100))
    assert found.value == pytest.approx(0.445)
    assert found.p == pytest.approx(0.272, abs=5e-4)
    assert found.ci[0] < 0.5 < found.ci[1]


def test_all_pairs_of_samples_are_compared():
    # 1 > 0, 1 < 2, 3 > 0, 3 > 2
    assert win_scores(np.array([[1.0, 3.0]]), np.array([[0.0, 2.0]])) == pytest.approx([0.75])


def test_scores_equal_a_double_loop():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 4, (30, 3)).astype(float), rng.integers(0, 4, (30, 2))
    expected = [
        np.mean([1.0 if a > b else 0.0 if a < b else 0.5 for a in row for b in other])
        for row, other in zip(ours, theirs, strict=True)
    ]
    assert win_scores(ours, theirs.astype(float)) == pytest.approx(expected)


def test_the_two_directions_sum_to_one():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 5, (2, 40, 3)).astype(float)
    there, back = win_rate(first, second), win_rate(second, first)
    assert there.value + back.value == pytest.approx(1)
    assert there.p == pytest.approx(back.p)


def test_a_model_against_its_own_samples_wins_half():
    rewards = np.random.default_rng(2).normal(size=(20, 4))
    assert win_rate(rewards, rewards).value == 0.5


def test_differences_up_to_epsilon_are_ties():
    found = win_rate(column([0.05, 0.2]), column([0.0, 0.0]), epsilon=0.1)
    assert (found.wins, found.ties) == (1, 1)


def test_one_sample_a_side_takes_wilson_and_several_the_bootstrap():
    rng = np.random.default_rng(3)
    assert win_rate(rng.normal(size=(30, 1)), rng.normal(size=(30, 1))).method == "wilson"
    assert win_rate(rng.normal(size=(30, 4)), rng.normal(size=(30, 4))).method == "bootstrap"


def test_winning_everything_with_several_samples_falls_back_to_wilson():
    found = win_rate(np.ones((10, 4)), np.zeros((10, 4)))
    assert found.method == "wilson"
    assert found.ci == pytest.approx([0.722, 1], abs=5e-4)


@pytest.mark.parametrize("samples", [1, 4])
def test_where_nothing_varies_it_is_not_known_what_could_be_detected(samples):
    """It was said that a difference of 0 would be."""
    zeros = np.zeros((10, samples))
    for rewards in (zeros, zeros + 1):
        assert win_rate(rewards, zeros).detectable is None


def test_losing_all_of_five_prompts_is_2_in_32_with_several_samples():
    # The test is of the distance from one half: -1/2 five times.
    found = win_rate(np.zeros((5, 2)), np.ones((5, 2)))
    assert (found.test, found.p) == ("sign flip", 2 / 32)


def test_several_samples_narrow_the_interval():
    rng = np.random.default_rng(4)
    few, many = rng.normal(0.3, 1, (60, 1)), rng.normal(0.3, 1, (60, 8))
    low, high = win_rate(many, rng.normal(size=(60, 8))).ci
    wide = win_rate(few, rng.normal(size=(60, 1))).ci
    assert high - low < 0.7 * (wide[1] - wide[0])
