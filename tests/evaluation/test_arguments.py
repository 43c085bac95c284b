import json
from typing import Any

import pytest

from rlhf_recipes.arguments import parse_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import EvaluationArguments, Policy


def make_run(folder, weights=b"final", step=120, checkpoints=()):
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "run.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for number in checkpoints:
        (folder / f"checkpoint-{number}").mkdir()
        saved = weights if number == step else str(number).encode()
        (folder / f"checkpoint-{number}" / "adapter_model.safetensors").write_bytes(saved)
    return folder


def test_greedy_sampling_is_refused():
    with pytest.raises(ValueError, match="`temperature` is 0"):
        EvaluationArguments(temperature=0)


@pytest.mark.parametrize("name", ["samples_per_prompt", "batch_size", "judge_workers"])
def test_nothing_at_once_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0"):
        EvaluationArguments(**{name: 0})


@pytest.mark.parametrize(("best_of_n", "samples"), [(1, 1), (2, 4), (0, 1)])
def test_best_of_fewer_than_are_sampled_is_refused(best_of_n, samples):
    with pytest.raises(ValueError, match=f"`best_of_n` is {best_of_n}"):
        EvaluationArguments(best_of_n=best_of_n, samples_per_prompt=samples)


def test_best_of_n_concerns_base_alone():
    arguments = EvaluationArguments(best_of_n=16, samples_per_prompt=2)
    assert (arguments.base_samples, arguments.samples_per_prompt) == (16, 2)
    assert EvaluationArguments(samples_per_prompt=2).base_samples == 2


def test_one_prompt_is_refused():
    with pytest.raises(ValueError, match=r"`eval_prompts` is 1\. An interval needs"):
        EvaluationArguments(eval_prompts=1)


def test_nothing_to_evaluate_is_an_error(tmp_path):
    nothing: dict[str, Any] = {"models": []}
    for given in ({}, nothing):
        with pytest.raises(RecipeError, match="no policy to evaluate"):
            EvaluationArguments(output_dir=str(tmp_path), **given).policies()


@pytest.mark.parametrize(
    "entry",
    ["base=a", "reference=a", "control=a", "mine", "mine=", "=a", "a/b/c=d", "a.b=c", "/a=b"],
)
def test_a_policy_needs_a_folder_and_a_name_of_its_own(entry):
    with pytest.raises(ValueError, match=f"has the entry `{entry}`"):
        EvaluationArguments(models=[entry])


@pytest.mark.parametrize("entry", ["gold=a.py:f", "proxy=a.py:f", "mine", "a/b=c", "../x=a.py:f"])
def test_a_judge_needs_a_name_of_its_own(entry):
    with pytest.raises(ValueError, match=f"`judges` has the entry `{entry}`"):
        EvaluationArguments(judges=[entry])


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="names a more than once"):
        EvaluationArguments(judges=["a=x.py:f", "b=x.py:f", "a=y.py:f"])
    with pytest.raises(ValueError, match="names ppo-1 more than once"):
        EvaluationArguments(models=["ppo/1=x", "ppo-1=y"])


def test_finished_runs_of_the_workspace_are_what_is_evaluated(tmp_path):
    for name in ("dpo", "ppo"):
        make_run(tmp_path / "models" / f"{name}_model", checkpoints=[60])
    (tmp_path / "models" / "grpo_model").mkdir()  # has not finished
    policies = EvaluationArguments(output_dir=str(tmp_path)).policies()
    assert [(p.name, p.family, p.run, p.step) for p in policies] == [
        ("ppo", "ppo", "ppo", None),
        ("dpo", "dpo", "dpo", None),
    ]


def test_seeds_of_one_method_are_a_family(tmp_path):
    named = EvaluationArguments(models=["ppo/s1=a", "ppo/s2=b", "dpo=c=d"]).policies()
    assert [(p.name, str(p.folder), p.family) for p in named] == [
        ("ppo-s1", "a", "ppo"),
        ("ppo-s2", "b", "ppo"),
        ("dpo", "c=d", "dpo"),
    ]


def test_checkpoints_come_in_the_order_of_their_steps_and_the_finished_run_last(tmp_path):
    """The last checkpoint is the finished adapter itself, so it is not sampled twice."""
    folder = make_run(tmp_path / "ppo", checkpoints=[100, 20, 120])
    policies = EvaluationArguments(models=[f"ppo={folder}"], checkpoints=True).policies()
    assert policies == [
        Policy("ppo-20", folder / "checkpoint-20", "ppo", "ppo", 20),
        Policy("ppo-100", folder / "checkpoint-100", "ppo", "ppo", 100),
        Policy("ppo", folder, "ppo", "ppo", 120),
    ]


def test_runs_without_checkpoints_have_none_to_evaluate(tmp_path):
    folder = make_run(tmp_path / "ppo", checkpoints=[120])
    with pytest.raises(RecipeError, match="hold no checkpoint besides the finished adapter"):
        EvaluationArguments(models=[f"ppo={folder}"], checkpoints=True).policies()


def test_a_recipe_says_how_a_chat_judge_is_asked():
    flags = '--judge_parameters {"temperature":0.5,"max_tokens":80} --judges gpt=hub:some/model'
    (parsed,), _ = parse_recipe(EvaluationArguments, argv=flags.split())
    assert parsed.judge_parameters == {"temperature": 0.5, "max_tokens": 80}
    assert parsed.judges == ["gpt=hub:some/model"]
