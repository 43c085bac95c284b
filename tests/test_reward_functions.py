"""What a user's reward function returns is checked the same way for GRPO, PPO and evaluation."""

import math

import pytest
import torch

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.reward_functions import (
    check_functions,
    checked,
    import_function,
    load_reward_func,
)

PROMPTS = ["Who?", "Why?"]
COMPLETIONS = ["Me.", "Because."]


def returning(value):
    def rule(prompts, completions, **_):
        return value

    return rule


def test_a_function_is_loaded_from_its_file(tmp_path):
    file = tmp_path / "rule.py"
    file.write_text("def length(prompts, completions):\n    return [len(c) for c in completions]\n")
    assert import_function(f"{file}:length")(["p"], ["abc"]) == [3]
    with pytest.raises(RecipeError, match="has no function `width`"):
        import_function(f"{file}:width")
    with pytest.raises(RecipeError, match="there is no file"):
        import_function("nowhere.py:length")


def test_a_file_that_cannot_be_imported_is_named(tmp_path):
    file = tmp_path / "rule.py"
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(RecipeError, match="cannot be imported: ModuleNotFoundError"):
        import_function(f"{file}:length")


@pytest.mark.parametrize(
    "value",
    [[1, 2.5], (1, 2.5), torch.tensor([1.0, 2.5]), iter([1, 2.5])],
    ids=["list", "tuple", "tensor", "iterator"],
)
def test_one_finite_number_per_completion_is_accepted_in_any_container(value):
    scores = checked(returning(value))(prompts=PROMPTS, completions=COMPLETIONS)
    assert scores == [1.0, 2.5]
    assert {type(score) for score in scores} == {float}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([1.0, math.nan], "nan for the completion 'Because.' of the prompt 'Why?'"),
        ([math.inf, 1.0], "inf for the completion 'Me.' of the prompt 'Who?'"),
        ([None, 1.0], "None for the completion"),
        (["1", 1.0], "'1' for the completion"),
        ([1.0], "1 values for 2 completions"),
        (1.0, "must return a list"),
        (None, "must return a list"),
    ],
    ids=str,
)
def test_anything_but_finite_numbers_is_refused_by_name(value, error):
    with pytest.raises(RecipeError, match=r"The reward function `rule` returned") as refused:
        checked(returning(value))(prompts=PROMPTS, completions=COMPLETIONS)
    assert error in str(refused.value)


def test_a_function_that_fails_is_named_with_its_arguments():
    def rule(prompts, completions, **_):
        return [1 / 0]

    with pytest.raises(RecipeError, match="`rule` failed: ZeroDivisionError") as refused:
        checked(rule)(prompts=PROMPTS, completions=COMPLETIONS)
    assert "'Me.' of the prompt 'Who?'" in str(refused.value)


def test_a_loaded_function_gets_texts_and_keeps_its_name(tmp_path):
    file = tmp_path / "rule.py"
    file.write_text(
        "def shout(prompts, completions):\n"
        "    assert prompts == ['hi'] and completions == ['yes']\n"
        "    return [float('nan')]\n"
    )
    conversation = {
        "prompts": [[{"role": "user", "content": "hi"}]],
        "completions": [[{"role": "assistant", "content": "yes"}]],
    }
    with pytest.raises(RecipeError, match="`shout` returned nan"):
        checked(load_reward_func(f"{file}:shout"))(**conversation)


@pytest.mark.parametrize(
    ("names", "weights", "error"),
    [
        (["rule", "rule"], None, "Two reward functions have one name"),
        ([], None, "nothing to be rewarded for"),
        (["rule"], [1.0, 2.0], "2 weights"),
        (["rule", "other"], [0.0, 0.0], "the same reward"),
        (["rule"], [math.nan], "one that is not a number"),
    ],
)
def test_names_and_weights_are_checked_before_anything_runs(names, weights, error):
    with pytest.raises(RecipeError, match=error):
        check_functions(names, weights)
    check_functions(["rule", "other"], [1.0, 0.0])
