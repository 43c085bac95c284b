"""What cannot work is refused at the start, by `--plan` and by the run in the same words."""

import json

import pytest
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig

from rlhf_recipes.arguments import RecipeArguments, RewardArguments
from rlhf_recipes.checks import ALL, Inputs, check_training
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.preferences import load_prepared

CONFIGS = {"reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig, "ppo": PPOConfig}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "validation"):
        rows = [
            {"prompt": f"Question {i}? ", "chosen": "Yes.", "rejected": "No.", "turns": 1}
            for i in range(16)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text("{}")
    return load_prepared(folder)


def inputs(stage, data, folder, model=(), **training):
    settings = {"use_cpu": True, "bf16": False, "save_strategy": "no", **training}
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["all-linear"]}
    return Inputs(
        stage,
        RecipeArguments(),
        CONFIGS[stage](output_dir=str(folder / stage), **settings),
        ModelConfig(**{"model_name_or_path": "tiny", **lora, **dict(model)}),
        data,
        RewardArguments(reward_funcs=["unused.py:unused"]) if stage in ("grpo", "ppo") else None,
    )


@pytest.mark.parametrize("stage", ALL)
def test_full_fine_tuning_is_refused_in_every_stage(stage, data, tmp_path):
    check_training(inputs(stage, data, tmp_path))
    with pytest.raises(RecipeError, match="`use_peft` is false"):
        check_training(inputs(stage, data, tmp_path, model={"use_peft": False}))


def test_problems_are_told_together_and_files_are_not_opened_before_values_are_right(
    data, tmp_path
):
    wrong = inputs("dpo", data, tmp_path, model={"use_peft": False, "model_name_or_path": "none"})
    with pytest.raises(RecipeError) as refused:
        check_training(wrong)
    assert "none" not in str(refused.value)
