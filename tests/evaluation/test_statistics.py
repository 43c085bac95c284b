import numpy as np
import pytest
from scipy import stats

from rlhf_recipes.evaluation.statistics import (
    detectable_effect,
    effective_size,
    holm,
    mean_interval,
    rank_correlation,
    rate_difference,
    sign_flip_test,
    sign_test,
    wilson,
)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(1, 10, 0.722, 1), (0, 20, 0, 0.161), (0.75, 8, 0.409, 0.929)],
)
def test_wilson_known_answers(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 7), (54, 100), (100, 100)])
def test_wilson_equals_scipys(wins, n):
    expected = stats.binomtest(wins, n).proportion_ci(method="wilson")
    assert wilson(wins / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ties_make_each_comparison_more_informative():
    # Six wins, two ties, two losses: p(1-p) = .21, variance .21 - .05 = .16, n_eff = 10 * .21/.16.
    assert effective_size(0.7, 0.2, 10) == pytest.approx(13.125)
    assert effective_size(0.7, 0.0, 10) == 10
    assert effective_size(0.5, 1.0, 10) == 10  # nothing but ties
    assert effective_size(0.505, 0.97, 100) == 400  # the cap of 4n


def test_wilson_with_ties_covers_95_percent():
    # n = 50, 90% wins and no ties, where p ± 1.96 SE covers 87.8%; and 40% wins, 20% ties.
    rng = np.random.default_rng(0)
    for n, win, tie in ((50, 0.9, 0.0), (100, 0.4, 0.2)):
        covered = []
        for wins, ties, _ in rng.multinomial(n, [win, tie, 1 - win - tie], size=2000):
            value = (wins + ties / 2) / n
            low, high = wilson(value, effective_size(value, ties / n, n))
            covered.append(low <= win + tie / 2 <= high)
        assert 0.93 <= np.mean(covered) <= 0.98


def test_mean_interval_is_two_standard_errors_wide_for_normal_values():
    values = np.random.default_rng(1).normal(size=400)
    low, high = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert 0.97 < (high - low) / 2 / half < 1.03  # as near as 9,999 resamples tell
    assert low < values.mean() < high


def test_mean_interval_of_equal_values_is_a_point():
    assert mean_interval(np.full(9, 2.5)) == (2.5, 2.5)


def test_mean_interval_falls_back_to_t_where_bca_is_undefined(monkeypatch):
    """BCa is (nan, nan) if no resampled mean lies below the observed one."""
    undefined = type("R", (), {"confidence_interval": (np.nan, np.nan)})
    monkeypatch.setattr(stats, "bootstrap", lambda *_, **__: undefined)
    # mean 2, sem 1/√3, t_{0.975, 2} = 4.3027
    expected = (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5)
    assert mean_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(expected, rel=1e-5)


def test_sign_test_known_answers():
    assert sign_test(6, 2) == pytest.approx(0.2890625)
    assert sign_test(36, 47) == pytest.approx(0.272, abs=5e-4)
    assert sign_test(0, 0) == 1


def test_five_differences_of_one_sign_give_2_in_32():
    assert sign_flip_test(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)


def test_no_difference_at_all_has_p_one():
    assert sign_flip_test(np.zeros(8)) == 1


def test_holm_known_answer_and_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_194_prompts_show_60_percent_against_50():
    # sd of a win is √(.6 * .4); the effect to see is 0.1.
    assert detectable_effect((0.6 * 0.4) ** 0.5, 194) <= 0.1
    assert detectable_effect((0.6 * 0.4) ** 0.5, 186) > 0.1


def test_rate_difference_known_answer():
    # Of 50 pairs both 20, first only 12, second only 2, neither 16: p = .64, q = .44.
    # Wilson: [.5014, .7586] and [.3116, .5769]; φ = (20*16 - 12*2) / √(32*18*22*28) = .4969.
    # down = √(.1386² - 2φ(.1386)(.1369) + .1369²) = .1382, up = √(.1186² - ... + .1284²) = .1242.
    first = np.array([1.0] * 32 + [0.0] * 18)
    second = np.array([1.0] * 20 + [0.0] * 12 + [1.0] * 2 + [0.0] * 16)
    difference, interval = rate_difference(first, second)
    assert difference == pytest.approx(0.2)
    assert interval == pytest.approx((0.0618, 0.3242), abs=5e-5)


def test_none_of_n_on_both_sides_has_an_interval_of_some_width():
    # Wilson's upper limit of 0 of 64 is 0.0566; no correlation can be estimated.
    difference, interval = rate_difference(np.zeros(64), np.zeros(64))
    assert difference == 0
    assert interval == pytest.approx((-0.0566, 0.0566), abs=5e-4)


def test_rate_difference_is_antisymmetric():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 2, (2, 40)).astype(float)
    there, interval = rate_difference(first, second)
    back, reverse = rate_difference(second, first)
    assert there == pytest.approx(-back)
    assert interval == pytest.approx((-reverse.high, -reverse.low))


def test_rank_correlation_of_equal_orders_is_one():
    assert rank_correlation(np.arange(9.0), np.arange(9.0) ** 3)["value"] == pytest.approx(1)


def test_rank_correlation_without_variation_is_null_with_a_reason():
    found = rank_correlation(np.zeros(9), np.arange(9.0))
    assert found["value"] is None and "vary" in found["reason"]
