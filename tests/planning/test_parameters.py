import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
)
from trl import ModelConfig, get_peft_config

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.architectures import meta_model
from rlhf_recipes.models.loading import Base, open_tokenizer
from rlhf_recipes.planning.parameters import evaluation_parameters, stage_parameters
from rlhf_recipes.ppo.attaching import attach_roles
from rlhf_recipes.roles import Roles

# PEFT says that GPT-2's Conv1D stores its weight transposed, and goes on:
# https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")

LLAMA = LlamaConfig(
    vocab_size=101,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
GPT2 = GPT2Config(
    vocab_size=101, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, n_positions=64
)


@pytest.fixture(params=[LLAMA, GPT2], ids=["llama", "gpt2"])
def base(request, tmp_path):
    AutoModelForCausalLM.from_config(request.param).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def lora_of(model):
    config = get_peft_config(model)
    assert isinstance(config, LoraConfig)
    return config


def numbers(model):
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


@pytest.mark.parametrize("modules", [["all-linear"], None], ids=["all-linear", "default"])
@pytest.mark.parametrize("stage", ["reward", "dpo", "grpo"])
def test_counts_are_those_of_the_model_that_is_trained(base, stage, modules):
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    model = ModelConfig(
        model_name_or_path=base,
        use_peft=True,
        lora_r=3,
        lora_target_modules=modules,
        lora_task_type="SEQ_CLS" if stage == "reward" else "CAUSAL_LM",
    )
    keywords = {"num_labels": 1} if stage == "reward" else {}
    real = kind.from_pretrained(base, **keywords)
    alone = numbers(real)[0]
    total, trainable = numbers(get_peft_model(real, lora_of(model)))
    _, counted = stage_parameters(stage, model, scored=False)
    assert (counted.base, counted.total, counted.trainable) == (alone, total, trainable)
    assert 0 < counted.trainable < counted.total


@pytest.mark.parametrize("reward_rank", [3, 5])
def test_ppo_counts_policy_value_and_reward_on_one_base(base, tmp_path, reward_rank):
    folder = save_reward(base, tmp_path / "reward", reward_rank)
    model = ModelConfig(
        model_name_or_path=base, use_peft=True, lora_r=3, lora_target_modules=["all-linear"]
    )
    roles = Roles(AutoModelForCausalLM.from_pretrained(base))
    roles.attach("policy", lora_of(model), trainable=True)
    roles.attach_saved("value", folder, trainable=True)
    roles.attach_saved("reward", folder, trainable=False)
    width = roles.base.config.hidden_size
    roles.attach_head("value", torch.zeros(1, width), torch.zeros(1), trainable=True)
    _, counted = stage_parameters("ppo", model, read_adapter(folder))
    assert (counted.total, counted.trainable) == numbers(roles)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_without_a_reward_model_there_is_none_to_count(base, stage):
    model = ModelConfig(
        model_name_or_path=base, use_peft=True, lora_r=3, lora_target_modules=["all-linear"]
    )
    width = AutoModelForCausalLM.from_pretrained(base).config.hidden_size
    alone = stage_parameters("dpo", model)[1].adapters
    _, counted = stage_parameters(stage, model, scored=False)
    # PPO has a value model all the same, with a head and its bias.
    assert counted.adapters == (alone if stage == "grpo" else 2 * alone + width + 1)
    assert stage_parameters(stage, model)[1].adapters == counted.adapters + alone + width


def test_ppo_from_an_adapter_holds_it_once_more_as_the_reference(base, tmp_path):
    lora = {"lora_r": 5, "lora_target_modules": ["all-linear"]}
    model = ModelConfig(model_name_or_path=base, use_peft=True, **lora)
    real = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=5, target_modules="all-linear")
    get_peft_model(real, config).save_pretrained(tmp_path / "start")
    reward = read_adapter(save_reward(base, tmp_path / "reward", 2))
    start = read_adapter(tmp_path / "start")
    roles = Roles(AutoModelForCausalLM.from_pretrained(base))
    attach_roles(roles, open_tokenizer("tiny"), reward, None, start)
    _, counted = stage_parameters("ppo", model, reward, has_reference=True)
    assert (counted.total, counted.trainable) == numbers(roles)


def test_a_reward_model_that_is_not_trained_yet_is_assumed_to_be_like_the_policy(base, tmp_path):
    model = ModelConfig(
        model_name_or_path=base, use_peft=True, lora_r=3, lora_target_modules=["all-linear"]
    )
    trained = stage_parameters("ppo", model, read_adapter(save_reward(base, tmp_path, 3)))
    assert stage_parameters("ppo", model)[1] == trained[1]


def test_evaluation_trains_nothing_and_has_every_adapter(base, tmp_path):
    folders = [str(save_reward(base, tmp_path / str(rank), rank)) for rank in (2, 3)]
    roles = Roles(AutoModelForCausalLM.from_pretrained(base))
    for name, folder in zip("ab", folders, strict=True):
        roles.attach_saved(name, folder, trainable=False)
    _, counted = evaluation_parameters([read_adapter(folder) for folder in folders])
    assert (counted.total, counted.trainable) == (numbers(roles)[0], 0)


def test_no_weights_are_made(base):
    model = ModelConfig(model_name_or_path=base, use_peft=True, lora_target_modules=["all-linear"])
    meta, counted = stage_parameters("ppo", model)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert numbers(meta)[0] == counted.base


def test_lora_that_does_not_fit_the_base_is_refused(base):
    model = ModelConfig(model_name_or_path=base, use_peft=True, lora_target_modules=["qq_proj"])
    with pytest.raises(RecipeError, match=r"LoRA does not fit .*qq_proj.*lora_target_modules"):
        stage_parameters("dpo", model)


def test_a_missing_base_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be opened"):
        meta_model(Base(str(tmp_path)))


def save_reward(base, folder, rank):
    """Save a reward adapter as RewardTrainer does: on a sequence classifier, with its head."""
    real = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=rank, target_modules="all-linear")
    get_peft_model(real, config).save_pretrained(folder)
    return folder
