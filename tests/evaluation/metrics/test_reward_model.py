import math

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.metrics.reward_model import near_duplicates, reward_model_errors


def pair(margin, gap=0, chosen="a good answer", rejected="another reply", turns=1):
    return {
        "prompt": "Why?",
        "chosen": chosen,
        "rejected": rejected,
        "chosen_reward": margin,
        "rejected_reward": 0.0,
        "chosen_tokens": 20 + gap,
        "rejected_tokens": 20,
        "turns": turns,
        "source": "demo",
    }


def test_a_tie_counts_as_half_right():
    found = reward_model_errors([pair(1.0)] * 6 + [pair(0.0)] * 2 + [pair(-1.0)] * 2)
    accuracy = found.quality.accuracy
    assert accuracy.value == pytest.approx(0.7)
    assert (accuracy.right, accuracy.ties, accuracy.wrong) == (6, 2, 2)
    assert found.quality.n_wrong == 2


def test_ten_most_confident_and_ten_random_wrong_pairs(pairs):
    found = reward_model_errors(pairs)
    shown = found.wrong_pairs
    assert len(shown) == 20 and found.quality.n_wrong > 20
    wrong = sorted(p["chosen_reward"] - p["rejected_reward"] for p in pairs)
    assert [p["margin"] for p in shown[:10]] == pytest.approx(wrong[:10])
    assert len({p["index"] for p in shown}) == 20
    assert all(p["margin"] < 0 for p in shown)
    assert [p["selection"] for p in shown] == ["most confident"] * 10 + ["random"] * 10


def test_the_same_pairs_give_the_same_choice(pairs):
    assert reward_model_errors(pairs) == reward_model_errors(pairs)


def test_all_wrong_pairs_are_shown_if_there_are_no_more_than_twenty():
    found = reward_model_errors([pair(-1.0 - i) for i in range(20)] + [pair(1.0)])
    assert len(found.wrong_pairs) == 20
    assert {p["selection"] for p in found.wrong_pairs} == {"all"}


def test_slices_have_denominators_and_rates():
    shorter, longer = [pair(-1.0, gap=-5)] * 3 + [pair(1.0, gap=-5)], [pair(1.0, gap=5)] * 6
    slices = {(s.slice, s.value): s for s in reward_model_errors(shorter + longer).quality.slices}
    found = slices["length", "chosen shorter"]
    assert (found.n, found.wrong, found.error_rate) == (4, 3, 0.75)
    assert slices["length", "chosen longer"].error_rate == 0
    for name in {name for name, _ in slices}:
        assert sum(s.n for (slice_, _), s in slices.items() if slice_ == name) == 10


def test_a_pure_length_rule_has_balanced_accuracy_one_half():
    # It prefers the longer text always; the labels do in six of ten: right on 6 of 6 and 0 of 4.
    pairs = [pair(0.1 * gap, gap) for gap in (3, 4, 5, 6, 7, 8, -2, -3, -4, -5)]
    found = reward_model_errors(pairs).quality.length_bias
    assert found.spearman.value == pytest.approx(1)
    assert found.longer_wins.value == 1 and found.longer_wins.n == 10
    assert found.longer_is_chosen.value == pytest.approx(0.6)
    assert found.accuracy["chosen_longer"].value == 1
    assert found.accuracy["chosen_shorter"].value == 0
    assert found.balanced_accuracy == pytest.approx(0.5)


def test_pairs_of_equal_length_say_nothing_of_length():
    found = reward_model_errors([pair(1.0), pair(-1.0), pair(2.0), pair(0.5)]).quality.length_bias
    assert found.longer_wins is None and found.balanced_accuracy is None
    assert found.accuracy == {"chosen_shorter": None, "chosen_longer": None}
    assert found.spearman.value is None and "vary" in found.spearman.reason


def test_a_label_that_gold_disagrees_with_is_flagged():
    doubtful = pair(-1.0) | {"chosen_gold": 1.0, "rejected_gold": 2.0}
    agreed = pair(-2.0) | {"chosen_gold": 3.0, "rejected_gold": 2.0}
    shown = reward_model_errors([doubtful, agreed]).wrong_pairs
    assert [p["flags"] for p in shown] == [[], ["gold_disagrees_with_label"]]


def test_flags_say_what_is_particular_about_a_wrong_pair():
    refusal = "I'm sorry, but I can't help with that."
    found = reward_model_errors(
        [pair(-1.0, gap=-3, chosen=refusal), pair(-0.5, rejected="a good answer")]
    )
    assert found.wrong_pairs[0]["flags"] == ["chosen_shorter", "refusal_in_chosen"]
    assert found.wrong_pairs[1]["flags"] == ["near_duplicate"]
    assert found.wrong_pairs[0]["length_gap"] == -3


def test_near_duplicates_share_four_words_in_five():
    # Dice: 2 * 4 / (5 + 5) = 0.8, and 2 * 3 / 10 = 0.6.
    assert near_duplicates("one two three four five", "one two three four six")
    assert not near_duplicates("one two three four five", "one two three six seven")


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(RecipeError, match="pair 1 as nan"):
        reward_model_errors([pair(1.0), pair(math.nan)])


def test_no_pairs_are_refused():
    with pytest.raises(RecipeError, match="no preference pairs"):
        reward_model_errors([])
