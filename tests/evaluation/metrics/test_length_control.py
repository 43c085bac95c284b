import warnings

import numpy as np
import pytest
from scipy.special import expit

from rlhf_recipes.evaluation.metrics.length_control import length_controlled


def test_wins_explained_by_length_give_one_half():
    # θ = (logit .75 + logit .25) / 2 = 0; raw: 35 of 60.
    scores = np.array([1.0] * 30 + [0.0] * 10 + [1.0] * 5 + [0.0] * 15)
    found = length_controlled(scores, np.array([7.0] * 40 + [-7.0] * 20), "gold")
    assert found.raw == pytest.approx(35 / 60)
    assert found.value == pytest.approx(0.5, abs=1e-5)
    assert found.ci[0] < 0.5 < found.ci[1]


def test_without_differences_in_length_it_is_the_win_rate():
    scores = np.array([1.0] * 7 + [0.0] * 3)
    found = length_controlled(scores, np.zeros(10), "gold")
    assert found.value == pytest.approx(0.7) and found.length_effect == 0
    assert found.overlaps


def test_the_two_directions_sum_to_one():
    rng = np.random.default_rng(0)
    gap = rng.normal(4, 10, 80)
    scores = rng.choice([0.0, 0.5, 1.0], 80)
    there, back = (
        length_controlled(scores, gap, "gold"),
        length_controlled(1 - scores, -gap, "gold"),
    )
    assert there.value + back.value == pytest.approx(1)
    assert there.ci[0] + back.ci[1] == pytest.approx(1)


def test_a_win_by_length_alone_is_taken_back():
    # logit P(win) = 1.5 tanh(d / rms(d)) and answers that are longer on average.
    rng = np.random.default_rng(1)
    gap = rng.normal(0.6, 1, 20_000)
    chance = expit(1.5 * np.tanh(gap / np.sqrt(np.mean(gap**2))))
    found = length_controlled(
        (rng.random(20_000) < chance).astype(float)[:4000], gap[:4000], "gold"
    )
    assert found.raw > 0.6 and found.value == pytest.approx(0.5, abs=0.03)
    assert found.shift.ci[1] < 0
    assert found.shift.value == pytest.approx(found.value - found.raw)
    assert found.length_effect == pytest.approx(1.5, abs=0.2)


def test_it_is_the_logistic_regression_of_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(2)
    gap, scores = rng.normal(3, 9, 120), rng.choice([0.0, 0.5, 1.0], 120)
    design = sm.add_constant(np.tanh(gap / np.sqrt(np.mean(gap**2))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half a win is no count, and statsmodels says so
        theta, phi = sm.GLM(scores, design, family=sm.families.Binomial()).fit().params
    found = length_controlled(scores, gap, "gold")
    assert found.value == pytest.approx(expit(theta), abs=1e-5)
    assert found.length_effect == pytest.approx(phi, rel=1e-4)


def test_nothing_but_ties_is_no_certainty():
    """Its interval was [0.5, 0.5]; it is Wilson's of 10 in 20."""
    found = length_controlled(np.full(20, 0.5), np.arange(20.0), "gold")
    assert found.value == 0.5 and found.ci == pytest.approx((0.299, 0.701), abs=5e-4)


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_winning_or_losing_everything_leaves_nothing_to_adjust(outcome):
    # Wilson's interval of 0 and of 20 in 20.
    found = length_controlled(np.full(20, outcome), np.arange(20.0), "gold")
    assert found.value == outcome
    assert sorted(abs(outcome - end) for end in found.ci) == pytest.approx([0, 0.161], abs=5e-4)


def test_wins_that_length_separates_give_a_finite_fit():
    gap = np.arange(-30.0, 31.0)
    found = length_controlled((gap > 0).astype(float), gap, "gold")
    assert 0 < found.value < 1 and np.isfinite(found.length_effect)


def test_answers_that_are_always_longer_do_not_overlap():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 2, 40).astype(float)
    assert not length_controlled(scores, rng.uniform(1, 9, 40), "gold").overlaps
    assert not length_controlled(scores, np.where(np.arange(40) < 1, -1.0, 1.0), "gold").overlaps
    assert length_controlled(scores, np.where(np.arange(40) < 2, -1.0, 1.0), "gold").overlaps


def test_a_separated_fit_does_not_claim_certainty():
    # Every longer answer wins and every shorter one loses, but for the lead at equal length.
    gap = np.array([-3.0, -2.0, -1.5, 1.0, 2.0, 3.0] * 6)
    found = length_controlled((gap > -1.7).astype(float), gap, "gold")
    assert found.ci[1] - found.ci[0] > 0.05
