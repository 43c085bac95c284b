"""Checks at the start refuse what cannot work, for `--plan` and for the run alike."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig, SFTConfig

from rlhf_recipes.arguments import RecipeArguments, RewardArguments, StartArguments
from rlhf_recipes.checks import check_training
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import Precision, open_base, open_tokenizer
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.planning.plan import training_plan
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer
from rlhf_recipes.preferences import load_prepared, unique_prompts
from rlhf_recipes.roles import Roles
from tests.whole_reward_models import whole_reward_model

CONFIGS = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "ppo": PPOConfig,
}


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


def reward_function(folder, name="brevity"):
    file = folder / f"{name}.py"
    file.write_text(
        f"def {name}(prompts, completions):\n    return [-len(c) for c in completions]\n"
    )
    return f"{file}:{name}"


def inputs(stage, data, folder, model=(), **training):
    settings = {"use_cpu": True, "bf16": False, "save_strategy": "no", **training}
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["all-linear"]}
    return Inputs(
        stage,
        RecipeArguments(),
        CONFIGS[stage](output_dir=str(folder / stage), **settings),
        ModelConfig(**{"model_name_or_path": "tiny", **lora, **dict(model)}),
        data,
        RewardArguments(reward_funcs=[reward_function(folder)])
        if stage in ("grpo", "ppo")
        else None,
    )


def test_processes_that_are_not_connected_are_refused(data, tmp_path, monkeypatch):
    stage_inputs = inputs("dpo", data, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes were started, but the world size"):
        check_training(stage_inputs)


def test_files_are_not_opened_before_the_values_are_right(data, tmp_path):
    wrong = inputs("dpo", data, tmp_path, model={"use_peft": False, "model_name_or_path": "none"})
    with pytest.raises(RecipeError) as refused:
        check_training(wrong)
    assert "none" not in str(refused.value)


@pytest.fixture
def adapters(tmp_path):
    """Folder with a policy adapter and a reward adapter, as runs leave them."""
    roles = Roles(open_base("tiny"))
    for name in ("sft", "reward"):
        lora = LoraConfig(r=2, lora_alpha=32, target_modules="all-linear")
        roles.attach(name, lora, trainable=False)
        if name == "reward":
            roles.attach_head(name, torch.ones(1, 32), None, trainable=False)
        roles.save_role(name, tmp_path / name)
        open_tokenizer("tiny").save_pretrained(tmp_path / name)
    return tmp_path


def with_adapters(data, folder, stage="ppo", sft="sft", reward="reward", **recipe):
    start = {"sft_model_path": str(folder / sft)}
    training = {} if stage == "dpo" else {"max_completion_length": 8}
    stage_inputs = inputs(stage, data, folder, **training, **(start if stage == "ppo" else {}))
    return replace(
        stage_inputs,
        starting=None if stage == "ppo" else StartArguments(**start),
        recipe=RecipeArguments(**recipe),
        reward=RewardArguments(reward_model_path=str(folder / reward)),
    )


def test_adapters_are_read_once_on_the_way_to_ppo(data, adapters, monkeypatch):
    """Plan, checks and trainer share what was read, so the files may be deleted in between."""
    reads = []

    def counted(path):
        reads.append(path.name)
        with path.open("rb") as file:
            return file.read()

    monkeypatch.setattr(Path, "read_bytes", counted)
    stage_inputs = with_adapters(data, adapters)
    training_plan(stage_inputs)
    for name in ("sft", "reward"):
        shutil.rmtree(adapters / name)
    trainer = PPOTrainer(
        model=open_base("tiny"),
        args=stage_inputs.training,
        train_dataset=unique_prompts(data["train"]),
        processing_class=stage_inputs.tokenizer,
        peft_config=lora_config(stage_inputs.model),
        reward_model_path=stage_inputs.reward_model,
        sft_model=stage_inputs.start,
    )
    for role in ("policy", "reference", "reward", "value"):
        assert trainer.roles.adapter_config(role).r == 2
    assert sorted(reads) == ["adapter_config.json"] * 2 + ["adapter_model.safetensors"] * 2


def test_an_adapter_of_another_base_is_refused_before_weights(data, adapters):
    file = adapters / "reward" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"revision": "v2"}))
    check_training(with_adapters(data, adapters))  # a folder has no revisions
    elsewhere = {"base_model_name_or_path": "someone/else", "revision": "v2"}
    file.write_text(json.dumps(json.loads(file.read_text()) | elsewhere))
    with pytest.raises(RecipeError, match=r"trained on `someone/else` at revision `v2`, but"):
        check_training(with_adapters(data, adapters))


@pytest.mark.parametrize("stage", ["dpo", "grpo", "ppo"])
def test_a_start_is_checked_alike_in_every_policy_s_stage(stage, data, adapters):
    check_training(with_adapters(data, adapters, stage=stage))
    with pytest.raises(RecipeError, match="writes no text"):
        check_training(with_adapters(data, adapters, stage=stage, sft="reward"))
    other = with_adapters(data, adapters, stage=stage)
    other.model.lora_alpha = 8
    with pytest.raises(RecipeError, match="`lora_alpha` is 8 and 32"):
        check_training(other)
    planned = with_adapters(data, adapters, stage=stage, sft="none", plan=True)
    assert training_plan(planned).parameters == (
        training_plan(with_adapters(data, adapters, stage=stage)).parameters
    )
    with pytest.raises(RecipeError, match="holds no adapter"):
        check_training(with_adapters(data, adapters, stage=stage, sft="none"))
    file = adapters / "sft" / "adapter_config.json"
    elsewhere = {"base_model_name_or_path": "someone/else"}
    file.write_text(json.dumps(json.loads(file.read_text()) | elsewhere))
    with pytest.raises(RecipeError, match="trained on `someone/else`, but"):
        check_training(with_adapters(data, adapters, stage=stage))


def test_a_template_that_ppo_s_roles_do_not_share_is_refused(data, adapters):
    template = adapters / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(RecipeError, match="chat templates") as refused:
        check_training(with_adapters(data, adapters, chat_template=str(template)))
    assert "reward_model_path" in str(refused.value) and "sft_model_path" in str(refused.value)
    with pytest.raises(RecipeError, match="chat templates") as refused:
        check_training(with_adapters(data, adapters, stage="grpo", chat_template=str(template)))
    assert "reward_model_path" not in str(refused.value)  # GRPO's reads its own token ids


THINKING = "{% for m in messages %}{{ m['content'] }}{{ enable_thinking }}{% endfor %}"


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_arguments_of_the_template_that_differ_from_the_reward_model_s_are_refused(
    stage, data, adapters
):
    template, off = adapters / "template.jinja", {"enable_thinking": False}
    template.write_text(THINKING)
    for name in ("sft", "reward"):
        tokenizer = open_tokenizer("tiny", str(template), chat_template_kwargs=off)
        tokenizer.save_pretrained(adapters / name)
    same = {"stage": stage, "chat_template": str(template)}
    check_training(with_adapters(data, adapters, **same, chat_template_kwargs=off))
    for kwargs, value in ((None, "not set"), ({"enable_thinking": True}, "True")):
        with pytest.raises(RecipeError, match=r"reward_model_path") as refused:
            check_training(with_adapters(data, adapters, **same, chat_template_kwargs=kwargs))
        difference = f"`enable_thinking` of `chat_template_kwargs` is {value} and False"
        assert difference in str(refused.value)
        assert "sft_model_path" in str(refused.value)
        assert "same text" not in str(refused.value)


def test_ppo_from_python_refuses_a_reward_model_of_another_template(data, adapters):
    tokenizer = open_tokenizer("tiny")
    tokenizer.chat_template += "!"
    stage_inputs = inputs("ppo", data, adapters, max_completion_length=8)
    with pytest.raises(RecipeError, match=r"`reward_model_path` .* chat templates"):
        PPOTrainer(
            model=open_base("tiny"),
            args=stage_inputs.training,
            train_dataset=unique_prompts(data["train"]),
            processing_class=tokenizer,
            peft_config=lora_config(stage_inputs.model),
            reward_model_path=str(adapters / "reward"),
        )


def test_a_misspelled_argument_of_the_template_is_refused(data, adapters):
    misspelled = with_adapters(data, adapters, chat_template_kwargs={"enable_thinkng": False})
    with pytest.raises(RecipeError, match="`enable_thinkng`, and the chat template of "):
        check_training(misspelled)


def test_a_base_in_another_precision_than_the_reward_model_s_is_reported(data, adapters, caplog):
    (adapters / "reward" / "recipe.yaml").write_text("dtype: bfloat16\nload_in_4bit: true\n")
    with caplog.at_level(logging.WARNING):
        check_training(with_adapters(data, adapters))
    assert "float32, and `reward_model_path`" in caplog.text
    assert "trained on one in bfloat16, quantized to 4 bits (nf4)" in caplog.text


def test_the_precision_of_grpo_s_reward_model_is_as_trained_or_the_policy_s(data, adapters):
    (adapters / "reward" / "recipe.yaml").write_text("dtype: bfloat16\nload_in_8bit: true\n")
    stage_inputs = with_adapters(data, adapters, stage="grpo")
    assert stage_inputs.reward_precision == Precision("bfloat16", load_in_8bit=True)
    assert not stage_inputs.reward_shares_base
    two_bases = training_plan(stage_inputs).memory.weights
    asked = replace(stage_inputs.reward, reward_precision="policy")
    as_policy = replace(stage_inputs, reward=asked)
    assert as_policy.reward_precision == Precision()
    assert as_policy.reward_shares_base
    assert training_plan(as_policy).memory.weights < two_bases


def test_grpo_s_reward_model_shares_the_policy_s_base_where_it_can(data, adapters, monkeypatch):
    stage_inputs = with_adapters(data, adapters, stage="grpo")
    assert stage_inputs.reward_shares_base
    config = json.loads((adapters / "reward" / "adapter_config.json").read_text())
    other = config | {"base_model_name_or_path": "another/base"}
    (adapters / "reward" / "adapter_config.json").write_text(json.dumps(other))
    assert not with_adapters(data, adapters, stage="grpo").reward_shares_base
    (adapters / "reward" / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # no process has the whole base
    assert not with_adapters(data, adapters, stage="grpo").reward_shares_base


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_plan_counts_a_whole_reward_model_s_weights_in_their_own_type(stage, data, tmp_path):
    """A reward function costs nothing, and PPO's value model is the same with either."""
    alone = inputs(stage, data, tmp_path, max_completion_length=8)
    for dtype in (torch.float32, torch.bfloat16):
        folder = whole_reward_model(tmp_path / str(dtype), dtype=dtype)
        scored = replace(alone, reward=RewardArguments(reward_model_path=folder))
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        plan, without = training_plan(scored), training_plan(alone)
        assert plan.memory.weights - without.memory.weights == size
        assert plan.parameters == without.parameters
        assert f"(llama, {str(dtype)[6:]}) is loaded apart" in plan.notes[-1]
