"""Which adapters may be compared, and on a base held how."""

import logging
import shutil

import pytest
import torch
from peft import LoraConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.provenance import read_adapters
from rlhf_recipes.models.loading import Precision, open_base, open_tokenizer
from rlhf_recipes.roles import Roles


@pytest.fixture
def folders(tmp_path):
    """Folders of a reward model and a policy, as runs leave them."""
    roles = Roles(open_base("tiny"))
    for role in ("reward", "ppo"):
        roles.attach(role, LoraConfig(r=2, target_modules=["q_proj"]), trainable=False)
        if role == "reward":
            roles.attach_head(role, torch.ones(1, 32), None, trainable=False)
        roles.save_role(role, tmp_path / role)
        open_tokenizer("tiny").save_pretrained(tmp_path / role)
    return tmp_path


def evaluated(folders, **changes):
    settings = {"reward_model_path": str(folders / "reward"), "models": [f"ppo={folders / 'ppo'}"]}
    arguments = EvaluationArguments(**settings | changes)
    return read_adapters(arguments)


def trained_in(folders, **recipes):
    for name, recipe in recipes.items():
        (folders / name / "recipe.yaml").write_text(recipe)


def test_the_base_is_held_as_it_was_trained(folders):
    assert evaluated(folders).precision == Precision()  # nothing is known of it
    trained_in(folders, ppo="dtype: bfloat16\n")
    assert evaluated(folders).precision == Precision("bfloat16")
    both = "dtype: bfloat16\nload_in_4bit: true\n"
    trained_in(folders, ppo=both, reward=both)
    assert evaluated(folders).precision == Precision("bfloat16", load_in_4bit=True)


def test_adapters_trained_in_different_precision_need_a_word_and_get_one(folders, caplog):
    trained_in(folders, ppo="dtype: bfloat16\nload_in_4bit: true\n", reward="learning_rate: 1.0\n")
    with pytest.raises(RecipeError, match=r"`reward_model_path` float32, `ppo` bfloat16, quant"):
        evaluated(folders)
    with caplog.at_level(logging.WARNING):
        adapters = evaluated(folders, dtype="bfloat16", load_in_4bit=False)
    assert adapters.precision == Precision("bfloat16")
    assert "held in bfloat16, and `ppo` was trained on one in bfloat16, quant" in caplog.text


def test_a_key_says_otherwise(folders):
    trained_in(folders, ppo="load_in_8bit: true\n", reward="load_in_8bit: true\n")
    assert evaluated(folders).precision.bits == 8
    assert evaluated(folders, load_in_8bit=False).precision == Precision()
    four = evaluated(folders, load_in_8bit=False, load_in_4bit=True)
    assert four.precision == Precision(load_in_4bit=True)
    assert evaluated(folders, load_in_4bit=True).precision == Precision(load_in_4bit=True)


def test_a_policy_of_another_template_or_vocabulary_is_refused(folders):
    assert evaluated(folders).tokenizer.chat_template
    template = folders / "ppo" / "chat_template.jinja"
    template.write_text(template.read_text() + "Answer in one word.")
    with pytest.raises(RecipeError, match=r"`ppo` .* differ: their chat templates"):
        _ = evaluated(folders).tokenizer


def test_arguments_of_the_template_must_be_those_of_training(folders):
    template, off = folders / "template.jinja", {"enable_thinking": False}
    template.write_text(
        "{{ enable_thinking }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    bound = open_tokenizer("tiny", str(template), chat_template_kwargs=off)
    for name in ("reward", "ppo"):
        bound.save_pretrained(folders / name)
    for asked in (None, off):
        assert evaluated(folders, chat_template_kwargs=asked).tokenizer.chat_template
    for asked in ({}, {"enable_thinking": True}, {"enable_thinkng": False}):
        with pytest.raises(RecipeError, match=r"were trained with \{'enable_thinking': False\}"):
            evaluated(folders, chat_template_kwargs=asked)
    open_tokenizer("tiny", str(template)).save_pretrained(folders / "ppo")
    with pytest.raises(RecipeError, match=r"`enable_thinking` of .* is False and not set\. Every"):
        _ = evaluated(folders).tokenizer


def test_without_a_tokenizer_of_its_own_an_adapter_has_its_base_s(folders):
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        (folders / "reward" / name).unlink()
    assert evaluated(folders).tokenizer.get_vocab() == open_tokenizer("tiny").get_vocab()


def test_what_scores_is_no_policy(folders):
    shutil.copytree(folders / "reward", folders / "scorer")
    with pytest.raises(RecipeError, match="writes no text"):
        evaluated(folders, models=[f"ppo={folders / 'scorer'}"])


def test_a_key_that_leaves_a_difference_between_adapters_is_refused(folders):
    """`dtype` says nothing of the 4 bits in which only one of them was trained."""
    trained_in(folders, ppo="dtype: bfloat16\nload_in_4bit: true\n", reward="dtype: bfloat16\n")
    with pytest.raises(RecipeError, match="in different precisions"):
        evaluated(folders, dtype="bfloat16")
    four = evaluated(folders, load_in_4bit=True)
    assert four.precision == Precision("bfloat16", load_in_4bit=True)
    assert evaluated(folders, load_in_4bit=False).precision == Precision("bfloat16")
