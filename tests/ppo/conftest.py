"""A tiny PPO run: two layers of random weights, a reward adapter that means nothing."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.ppo.attaching import REWARD
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer
from rlhf_recipes.roles import Roles

PROMPTS = Dataset.from_dict({"prompt": [f"say {'so ' * (i % 5)}{i}" for i in range(16)]})


UPPER = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}
"""LoRA in the upper of the two layers only, so that the first is shared."""


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 8, "lora_alpha": 32, "target_modules": "all-linear", **changes})


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory):
    """A reward adapter whose head and weights are random: it scores, and means nothing."""
    return random_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="session")
def upper_reward_folder(tmp_path_factory):
    """The same with adapters in the upper of the two layers only."""
    return random_reward_model(tmp_path_factory.mktemp("upper"), **UPPER)


def random_reward_model(folder, **changes) -> str:
    roles = Roles(open_base("tiny"))
    roles.attach(REWARD, lora(**changes), trainable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in roles.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    roles.attach_head(REWARD, torch.randn(1, 32, generator=generator), None, trainable=False)
    roles.save_role(REWARD, folder)
    return str(folder)


def make_trainer(
    folder,
    reward_folder,
    prompts=PROMPTS,
    reward_funcs=(),
    eval_dataset=None,
    tokenizer_changes=None,
    base="tiny",
    dtype="float32",
    lora_changes=None,
    **changes,
) -> PPOTrainer:
    settings = {
        "per_device_train_batch_size": 4,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    tokenizer = open_tokenizer("tiny")
    for name, value in (tokenizer_changes or {}).items():
        setattr(tokenizer, name, value)
    return PPOTrainer(
        model=open_base(base, dtype=dtype),
        args=PPOConfig(output_dir=str(folder), **{**settings, **changes}),
        train_dataset=prompts,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=lora(**(lora_changes or {})),
        reward_model_path=reward_folder,
        reward_funcs=reward_funcs,
    )


def weights(roles: Roles) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in roles.named_parameters()}
