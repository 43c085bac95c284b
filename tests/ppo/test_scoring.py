import math

import pytest
import torch

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.scoring import EpisodeScorer, RewardScale

TEXTS = ["a", "bb", "cccc"]
PROMPTS = ["say"] * 3


def length(completions, **_):
    return [float(len(text)) for text in completions]


def vowels(completions, **_):
    return [float(sum(c in "aeiou" for c in text)) for text in completions]


def scorer(tmp_path, *functions, total=lambda value: value, **changes) -> EpisodeScorer:
    return EpisodeScorer(functions, PPOConfig(output_dir=str(tmp_path), **changes), total)


def test_reward_functions_are_mixed_by_their_weights(tmp_path):
    mixer = scorer(tmp_path, length, vowels, reward_weights=[0.5, -2.0])
    parts = mixer.function_scores(PROMPTS, TEXTS, {})
    assert parts == {"length": [1, 2, 4], "vowels": [1, 0, 0]}
    assert mixer.combine(parts).tolist() == [0.5 - 2, 1.0, 2.0]
    plain = scorer(tmp_path, length, vowels)
    assert plain.combine(parts).tolist() == [2, 2, 4]


def test_a_reward_function_is_called_as_grpo_calls_it(tmp_path):
    calls = []

    def record(**given):
        calls.append(given)
        return [0.0, 0.0]

    chat = [{"role": "user", "content": "say"}]
    scorer(tmp_path, record).function_scores([chat, "say"], ["a", "b"], {"answer": [1, 2]})
    assert calls == [
        {
            "prompts": [chat, "say"],
            "completions": [[{"role": "assistant", "content": "a"}], "b"],
            "answer": [1, 2],
        }
    ]


def test_a_wrong_number_of_values_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="`two` returned 2 values for 3 completions"):
        scorer(tmp_path, two).function_scores(PROMPTS, TEXTS, {})


def two(**_):
    return [1.0, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1"])
def test_a_value_that_is_no_finite_number_is_an_error(tmp_path, value):
    def broken(**_):
        return [1.0, value, 2.0]

    with pytest.raises(RecipeError, match=rf"`broken` returned {value!r} for the completion 'bb'"):
        scorer(tmp_path, broken).function_scores(PROMPTS, TEXTS, {})


def test_a_weight_for_each_reward_function_or_none(tmp_path):
    with pytest.raises(RecipeError, match="has 1 weights, and there are 2 reward functions"):
        scorer(tmp_path, length, vowels, reward_weights=[1.0])
    with pytest.raises(RecipeError, match="nothing to be rewarded for"):
        scorer(tmp_path)


def test_two_reward_functions_of_one_name_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="Two reward functions have one name: length, length"):
        scorer(tmp_path, length, length)


def test_a_constant_score_has_no_scale_though_rounding_gives_it_one():
    constant = torch.full((36,), 0.1)
    assert RewardScale.measure(constant, lambda value: value).std == 1.0


def test_the_scale_is_over_all_processes():
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    together = RewardScale.measure(scores, lambda value: value)
    assert together.mean == 3.0
    assert together.std == pytest.approx(math.sqrt(14 / 3))
    sums = iter([torch.tensor(4.0), scores.sum(), ((scores - 3) ** 2).sum()])
    assert RewardScale.measure(scores[:1], lambda _: next(sums)) == together
    assert RewardScale.measure(torch.ones(3), lambda value: value) == RewardScale(1.0, 1.0)


def test_scores_are_left_as_they_are_where_no_scale_is_wanted(tmp_path):
    mixer = scorer(tmp_path, length, normalize_rewards=False, missing_eos_penalty=None)
    scores = torch.tensor([5.0, 9.0])
    mixer.measure_scale(scores)
    assert torch.equal(mixer.effective_scores(scores, torch.tensor([True, False])), scores)


def test_the_penalty_is_for_what_was_cut_off_alone(tmp_path):
    mixer = scorer(
        tmp_path, length, normalize_rewards=False, reward_clip=2.0, missing_eos_penalty=0.5
    )
    raw = torch.tensor([5.0, 5.0, -5.0])
    mixer.measure_scale(raw)
    assert mixer.effective_scores(raw, torch.tensor([True, False, True])).tolist() == [
        2.0,
        1.5,
        -2.0,
    ]
