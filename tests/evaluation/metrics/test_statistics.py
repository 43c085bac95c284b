import numpy as np
import pytest
from scipy import stats

from rlhf_recipes.evaluation.metrics.statistics import (
    detectable_effect,
    effective_size,
    holm,
    mean_interval,
    prompts_needed,
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


@pytest.mark.parametrize(("credits", "n"), [(0, 5), (54, 100), (100, 100), (44.5, 100), (0.5, 7)])
def test_wilson_equals_statsmodels_for_whole_and_half_credits(credits, n):
    from statsmodels.stats.proportion import proportion_confint

    expected = proportion_confint(credits, n, method="wilson")
    assert wilson(credits / n, n) == pytest.approx(expected, abs=1e-12)


def test_ties_make_each_comparison_more_informative():
    # Six wins, two ties, two losses: p(1-p) = .21, variance .21 - .05 = .16, n_eff = 10 * .21/.16.
    assert effective_size(0.7, 0.2, 10) == pytest.approx(13.125)
    assert effective_size(0.7, 0.0, 10) == 10
    assert effective_size(0.5, 1.0, 10) == 10  # nothing but ties
    assert effective_size(0.505, 0.97, 100) == 400  # the cap of 4n


def test_mean_interval_is_two_standard_errors_wide_for_normal_values():
    values = np.random.default_rng(1).normal(size=400)
    low, high = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert 0.97 < (high - low) / 2 / half < 1.03  # as near as 9,999 resamples tell
    assert low < values.mean() < high


def test_mean_interval_of_equal_values_is_a_point():
    assert mean_interval(np.full(9, 2.5)) == (2.5, 2.5)


def test_the_bootstrap_interval_of_few_values_is_always_finite():
    """BCa is undefined where all resampled means lie on one side of the observed one."""
    for n in (2, 3, 4, 9):
        for outlier in (1e-6, 1.0, 1e6):
            low, high = mean_interval(np.array([outlier] + [0.0] * (n - 1)))
            assert 0 <= low < high <= outlier


def test_sign_test_known_answers():
    assert sign_test(6, 2) == pytest.approx(0.2890625)
    assert sign_test(36, 47) == pytest.approx(0.272, abs=5e-4)
    assert sign_test(0, 0) == 1


@pytest.mark.parametrize(("n", "draws"), [(7, 128), (13, 8192)])
def test_the_sign_flip_test_is_exact_where_it_can_be(n, draws):
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(expected.pvalue)
    assert sign_flip_test(differences) * draws == pytest.approx(
        round(sign_flip_test(differences) * draws)
    )


def test_the_sign_flip_test_of_many_differences_is_near_the_t_test():
    differences = np.random.default_rng(5).normal(0.22, 1, 200)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert 0.01 < expected < 0.2
    assert sign_flip_test(differences) == pytest.approx(expected, abs=0.01)
    assert sign_flip_test(differences + 10) == 1 / 10_000  # the fewest that 9,999 draws can say


def test_five_differences_of_one_sign_give_2_in_32():
    assert sign_flip_test(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)


def test_no_difference_at_all_has_p_one():
    assert sign_flip_test(np.zeros(8)) == 1


def test_holm_known_answer_and_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_equals_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(6).beta(0.5, 3, 12)
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_60_percent_needs_194_prompts_and_194_show_it():
    assert prompts_needed(0.6) == prompts_needed(0.4) == 194
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
    assert rank_correlation(np.arange(9.0), np.arange(9.0) ** 3).value == pytest.approx(1)


def test_rank_correlation_without_variation_is_null_with_a_reason():
    found = rank_correlation(np.zeros(9), np.arange(9.0))
    assert found.value is None and "vary" in found.reason


def test_rank_correlation_known_answer():
    # Ranks 1..5 against 2, 1, 4, 3, 5: Σd² = 4, ρ = 1 - 6*4/(5*24) = .8. Bonett and Wright:
    # atanh .8 = 1.0986 and 1.96 √((1 + .32)/2) = 1.5923 give tanh -.4937 and tanh 2.6909.
    found = rank_correlation(np.arange(5.0), np.array([2.0, 1, 4, 3, 5]))
    assert found.value == pytest.approx(0.8)
    assert found.ci == pytest.approx([-0.4571, 0.9908], abs=5e-4)


def test_one_value_a_prompt_has_the_clustered_standard_error():
    # Two prompts of two answers, [1, 1 | 0, 0]. Clustered: √(2/1 * (1² + 1²)) / 4 = .5; taken as
    # four independent ones, √(1/3) / 2 = .289. 2.80 standard errors can be detected.
    values = np.array([[1.0, 1.0], [0.0, 0.0]])
    per_prompt = values.mean(axis=1)
    assert detectable_effect(per_prompt.std(ddof=1), 2) == pytest.approx(2.8016 * 0.5, rel=1e-4)
    assert stats.sem(values.ravel()) == pytest.approx(0.2887, abs=5e-5)


@pytest.mark.parametrize("n", [25, 64, 301])
def test_the_bootstrap_interval_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    for values in (rng.lognormal(size=n), rng.integers(0, 5, n) / 4, rng.normal(size=n)):
        resampling = {"method": "BCa", "batch": 1000, "rng": np.random.default_rng(42)}
        expected = stats.bootstrap((values,), np.mean, n_resamples=9999, **resampling)
        assert mean_interval(values) == pytest.approx(expected.confidence_interval, rel=1e-9)
