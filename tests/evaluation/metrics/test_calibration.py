import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.calibration import (
    calibration,
    reliability,
    temperature,
)

LOGIT_75, LOGIT_90 = np.log(3), np.log(9)


def test_three_right_of_four_at_75_percent_are_calibrated():
    assert calibration(LOGIT_75 * np.array([1, 1, 1, -1])).ece == pytest.approx(0)


def test_six_right_of_ten_at_90_percent_are_off_by_30_points():
    margins = LOGIT_90 * np.array([1] * 6 + [-1] * 4)
    assert calibration(margins).ece == pytest.approx(0.3)


def test_no_margin_at_all_is_chance_and_says_so():
    found = calibration(np.zeros(8))
    assert found.ece == 0
    assert found.nll.value == pytest.approx(np.log(2)) == found.nll_of_chance
    assert found.brier.value == pytest.approx(0.25)
    assert found.temperature is None


def test_nll_and_brier_equal_scikit_learns():
    from sklearn.metrics import brier_score_loss, log_loss

    margins = np.random.default_rng(0).normal(0.5, 1, 60)
    # Shown in a random order, so that both classes occur: the loss of a pair does not change.
    flipped = np.random.default_rng(1).integers(0, 2, 60) * 2 - 1
    chance = 1 / (1 + np.exp(-margins * flipped))
    found = calibration(margins)
    assert found.nll.value == pytest.approx(log_loss(flipped > 0, chance))
    assert found.brier.value == pytest.approx(brier_score_loss(flipped > 0, chance))


def test_reliability_equals_scikit_learns_folded_curve():
    from sklearn.calibration import calibration_curve

    margins = np.random.default_rng(2).normal(0.7, 1.5, 300)
    claimed = 1 / (1 + np.exp(-np.abs(margins)))
    # Its bins are of [0, 1]: twenty of them are ten of the upper half.
    right, mean = calibration_curve(margins > 0, claimed, n_bins=20)
    rows = reliability(margins)
    assert [row.claimed for row in rows] == pytest.approx(mean.tolist())
    assert [row.right for row in rows] == pytest.approx(right.tolist())
    assert sum(row.n for row in rows) == 300


def test_the_temperature_of_margins_twice_too_large_is_two():
    rng = np.random.default_rng(3)
    true = rng.normal(0, 1.5, 20_000)
    wins = rng.random(20_000) < 1 / (1 + np.exp(-true))
    margins = np.where(wins, true, -true)
    assert temperature(margins) == pytest.approx(1, abs=0.05)
    assert temperature(2 * margins) == pytest.approx(2, abs=0.1)


def test_margins_that_are_always_right_have_no_best_temperature():
    assert temperature(np.ones(10)) is None
