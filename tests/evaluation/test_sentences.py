import numpy as np
import pytest

from rlhf_recipes.evaluation.sentences import (
    comparison_sentence,
    control_sentence,
    diversity_sentences,
    failure_sentences,
    frontier_sentence,
    gain,
    matched_sentence,
    number,
    over_optimisation_sentence,
)
from rlhf_recipes.evaluation.win_rate import win_rate


def rate_of(wins, losses):
    scores = np.array([1.0] * wins + [-1.0] * losses)[:, None]
    found = win_rate(scores, np.zeros_like(scores))
    return found | {"p_holm": found["p"]}


def test_54_of_100_is_not_called_better():
    sentence = comparison_sentence("ppo", "base", rate_of(54, 46), "gold")
    assert "better" not in sentence and "worse" not in sentence
    assert "no detectable difference" in sentence and "54% [44, 63]" in sentence
    # 2.80 standard errors of √(.54 * .46 * 100/99) / 10 are 14 points.
    assert "14 points" in sentence


def test_75_of_100_is_called_better_and_25_worse():
    assert "**better** than base" in comparison_sentence("ppo", "base", rate_of(75, 25), "gold")
    assert "**worse** than base" in comparison_sentence("ppo", "base", rate_of(25, 75), "gold")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (52.13, "52.1"),
        (9.998, "10.0"),
        (0.1234, "0.123"),
        (1234.5, "1234"),
        (-0.0004, "-0.0004"),
        (0, "0"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text


def test_a_number_too_small_to_show_is_zero_without_a_sign():
    assert number(-0.000004) == "0"


@pytest.mark.parametrize(
    ("probability", "said", "unsaid"),
    [
        (0.02, "is dominated by grpo", "may be"),
        (0.5, "may be on the gold frontier", "dominated"),
        (0.97, "is on the gold frontier", "may be"),
    ],
)
def test_dominated_is_said_only_of_what_95_percent_of_the_draws_show(probability, said, unsaid):
    front = {"probability": probability, "dominated_by": ["grpo"]}
    sentence = frontier_sentence("dpo", {"seq": 4.0, "ci": [3.5, 4.5]}, front, "gold")
    assert said in sentence and unsaid not in sentence


def test_more_on_the_proxy_is_not_yet_over_optimised():
    policy = {"proxy_gain": 1.2, "gold_gain": 0.3, "gap": 0.9, "gap_ci": [0.6, 1.2]}
    sentence = over_optimisation_sentence("ppo", policy | {"over_optimised": False})
    assert "gained more on the proxy" in sentence and "over-optimised" not in sentence


def test_a_gain_of_nothing_has_no_minus():
    assert gain(-0.001) == "+0.00" and gain(-0.01) == "-0.01"


@pytest.mark.parametrize(
    ("difference", "ci", "p_holm", "said"),
    [
        (0.4, [0.1, 0.7], 0.02, "gains more than"),
        (-0.4, [-0.7, -0.1], 0.02, "gains less than"),
        (0.4, [0.1, 0.7], 0.06, "no detectable difference"),
        (0.4, [-0.1, 0.7], 0.04, "no detectable difference"),
    ],
)
def test_paths_at_one_kl_differ_only_beyond_doubt(difference, ci, p_holm, said):
    pair = {"families": ["ppo", "dpo"], "kl": 4.0, "difference": difference, "ci": ci}
    sentence = matched_sentence(pair | {"p_holm": p_holm}, "gold")
    assert said in sentence and "**ppo**" in sentence


def varied(p_holm, ci):
    entry = {"difference": 8.0, "difference_ci": ci, "p_holm": p_holm}
    base = {"self_bleu_within": {"p_holm": None}, "entropy": None}
    ppo = {"self_bleu_within": entry, "entropy": None}
    return {"models": {"base": {"diversity": base}, "ppo": {"diversity": ppo}}}


def test_collapse_is_called_only_beyond_doubt():
    assert (
        "**ppo**: answers to one prompt are more alike"
        in diversity_sentences(varied(0.01, [2.0, 14.0]))[0]
    )
    for doubtful in (varied(0.2, [2.0, 14.0]), varied(0.01, [-2.0, 18.0]), varied(None, [2, 14])):
        assert diversity_sentences(doubtful)[0].startswith("No model")


def test_a_control_that_failed_says_by_what():
    win = {"value": 0.5, "ci": [0.4, 0.6], "p_holm": 0.9}
    control = {"win_rate": {"gold": win}, "kl": {"seq": 0.2}, "passed": False, "failed_on": ["kl"]}
    assert "**failed** on kl" in control_sentence("control", control, "gold")


def test_at_most_three_that_dominate_are_named():
    front = {"probability": 0.0, "dominated_by": ["a", "b", "c", "d"]}
    sentence = frontier_sentence("dpo", {"seq": 4.0, "ci": [3.5, 4.5]}, front, "gold")
    assert "dominated by a, b, c and others on gold" in sentence


def failure(p_holm, ci):
    entry = {"rate": 0.3, "diff_vs_base": 0.2, "diff_ci": ci, "p_holm": p_holm}
    return {"repetition": {"per_model": {"base": {"rate": 0.1}, "ppo": entry}}}


def test_a_failure_is_called_more_frequent_only_beyond_doubt():
    assert "**ppo** has more `repetition`" in failure_sentences(failure(0.01, [0.1, 0.3]))[0]
    for doubtful in (failure(0.2, [0.1, 0.3]), failure(0.01, [-0.1, 0.3])):
        assert failure_sentences(doubtful)[0].startswith("No failure")
