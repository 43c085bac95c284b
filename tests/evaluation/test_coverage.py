"""How often the 95% intervals hold the truth, by simulation. `pytest -m slow` runs these alone."""

import numpy as np
import pytest
from scipy.special import expit

from rlhf_recipes.evaluation.metrics.length_control import length_controlled
from rlhf_recipes.evaluation.metrics.statistics import (
    effective_size,
    mean_interval,
    rank_correlation,
    rate_difference,
    sign_flip_test,
    wilson,
)
from rlhf_recipes.evaluation.metrics.win_rate import win_rate

pytestmark = pytest.mark.slow


def tie_adjusted(n, win, tie, replicates=4000):
    """Fraction of Wilson intervals at n_eff, and of p ± 1.96 SE, that contain the true rate."""
    rng = np.random.default_rng(0)
    truth = win + tie / 2
    wilsons, normals = [], []
    for wins, ties, _ in rng.multinomial(n, [win, tie, 1 - win - tie], size=replicates):
        value = (wins + ties / 2) / n
        low, high = wilson(value, effective_size(value, ties / n, n))
        wilsons.append(low <= truth <= high)
        error = 1.96 * np.sqrt(max(0.0, value * (1 - value) - ties / n / 4) / n)
        normals.append(abs(value - truth) <= error)
    return float(np.mean(wilsons)), float(np.mean(normals))


@pytest.mark.parametrize(
    ("n", "win", "tie", "wilsons", "normals"),
    [
        (20, 0.65, 0.10, 0.952, 0.924),
        (20, 0.95, 0.04, 0.955, 0.638),
        (50, 0.90, 0.00, 0.969, 0.878),
        (50, 0.95, 0.04, 0.963, 0.753),
        (100, 0.40, 0.20, 0.948, 0.945),
        (200, 0.90, 0.05, 0.949, 0.936),
    ],
)
def test_wilson_at_the_tie_adjusted_size_covers_where_the_normal_does_not(
    n, win, tie, wilsons, normals
):
    # The expected fractions are of 20,000 replicates; 4,000 have a standard error under 0.8 points.
    found = tie_adjusted(n, win, tie)
    assert found == pytest.approx((wilsons, normals), abs=0.02)
    assert found[0] >= 0.94


def coverage(truth, intervals):
    held = [low <= truth <= high for low, high in intervals]
    return float(np.mean(held))


def test_the_bootstrap_of_skewed_values_covers():
    # Log-normal rewards of 60 prompts: skewed, as KL is.
    rng = np.random.default_rng(1)
    draws = rng.lognormal(0, 0.7, (250, 60))
    assert 0.90 <= coverage(np.exp(0.245), map(mean_interval, draws)) <= 0.98


def test_the_win_rate_of_several_samples_covers():
    # Prompts differ in how hard they are; reward gaps are N(0.3 + prompt, 2): P(win) by simulation.
    rng = np.random.default_rng(2)
    shift = 0.3 + rng.normal(0, 0.8, 2_000_000)
    truth = float((shift + rng.normal(0, np.sqrt(2), len(shift)) > 0).mean())
    intervals = []
    for _ in range(200):
        shift = 0.3 + rng.normal(0, 0.8, (60, 1))
        ours, theirs = shift + rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
        intervals.append(win_rate(ours, theirs).ci)
    assert 0.90 <= coverage(truth, intervals) <= 0.985


def test_the_rate_at_equal_length_covers_where_the_raw_rate_does_not():
    # logit P(win) = 1.2 tanh(d / rms(d)): no difference at equal length, longer answers win.
    rng = np.random.default_rng(3)
    adjusted, raw = [], []
    for _ in range(150):
        gap = rng.normal(0.7, 1, 120)
        chance = expit(1.2 * np.tanh(gap / np.sqrt(np.mean(gap**2))))
        scores = (rng.random(120) < chance).astype(float)
        adjusted.append(length_controlled(scores, gap, "gold").ci)
        raw.append(wilson(scores.mean(), 120))
    assert 0.90 <= coverage(0.5, adjusted) <= 0.99
    assert coverage(0.5, raw) < 0.6


def test_the_difference_of_paired_rates_covers():
    # Both fail with chance 10%, the policy alone with 15% more: a true difference of 0.15.
    rng = np.random.default_rng(4)
    intervals = []
    for _ in range(1500):
        both, alone = rng.random((2, 60)) < np.array([[0.1], [0.15 / 0.9]])
        rates = (both | alone).astype(float)
        intervals.append(rate_difference(rates, both.astype(float))[1])
    assert 0.93 <= coverage(0.15, intervals) <= 0.995


def test_the_rank_correlation_covers():
    # For a bivariate normal ρ_s = 6/π asin(ρ/2).
    rng = np.random.default_rng(5)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    intervals = []
    for _ in range(1000):
        x, noise = rng.normal(size=(2, 60))
        intervals.append(rank_correlation(x, 0.6 * x + 0.8 * noise).ci)
    assert 0.93 <= coverage(truth, intervals) <= 0.975


def test_the_sign_flip_test_errs_in_one_of_twenty():
    rng = np.random.default_rng(6)
    p_values = [sign_flip_test(rng.standard_t(3, 40)) for _ in range(600)]
    assert 0.03 <= np.mean(np.array(p_values) < 0.05) <= 0.07
