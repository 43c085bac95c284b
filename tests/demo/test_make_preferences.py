"""The demo's prompts, and which answers make a pair."""

import pytest
from make_preferences import PROMPTS, preference_pairs, preference_rows


def test_outer_answers_are_paired_inwards_while_they_differ_enough() -> None:
    # Ranked: 3 (90), 0 (70), 2 (62), 1 (40). Outer pair 90-40, inner pair 70-62.
    scores = [70.0, 40.0, 62.0, 90.0]
    assert preference_pairs("abcd", scores, min_gap=8.0) == [(3, 1), (0, 2)]
    assert preference_pairs("abcd", scores, min_gap=8.1) == [(3, 1)]
    assert preference_pairs("abcd", scores, min_gap=50.1) == []


def test_the_middle_answer_of_an_odd_number_is_in_no_pair() -> None:
    assert preference_pairs("abc", [10.0, 30.0, 20.0], min_gap=1.0) == [(1, 0)]


def test_empty_answers_are_in_no_pair() -> None:
    assert preference_pairs(["a", "", "c"], [80.0, 0.0, 60.0], min_gap=1.0) == [(0, 2)]
    assert preference_pairs(["a", ""], [80.0, 0.0], min_gap=1.0) == []


def test_a_row_holds_the_plainer_answer_as_chosen_with_both_gold_scores() -> None:
    # One sentence of three one-syllable words: 206.835 - 3.045 - 84.6 = 119.19.
    # Re-frig-er-a-tors main-tain food: 8 syllables, 206.835 - 3.045 - 84.6 * 8/3 = -21.81 -> 0.
    answers = ["Refrigerators maintain food.", "Food stays cold."]
    assert preference_rows("How does a fridge work?", answers, min_gap=10.0) == [
        {
            "prompt": [{"role": "user", "content": "How does a fridge work?"}],
            "chosen": [{"role": "assistant", "content": "Food stays cold."}],
            "rejected": [{"role": "assistant", "content": "Refrigerators maintain food."}],
            "gold_chosen": pytest.approx(119.2),
            "gold_rejected": 0.0,
        }
    ]


def test_the_shipped_prompts_are_four_hundred_different_short_questions() -> None:
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    assert len(prompts) == len({prompt.lower() for prompt in prompts}) == 400
    assert all(6 <= len(prompt.split()) <= 20 for prompt in prompts)
