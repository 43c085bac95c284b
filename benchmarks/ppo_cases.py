"""The cases of the PPO benchmark, with the prompts and models that both sides open."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification

from rlhf_recipes.models import base_path, open_base, open_tokenizer
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import prepare
from rlhf_recipes.roles import Roles
from rlhf_recipes.sampling import prompt_ids

OURS, THEIRS = "benchmarks.ppo_ours", "benchmarks.ppo_trl112"
PEER = "trl 1.12.0 PPOTrainer"
UNIT = "episode"
EQUAL = "scores of four texts by the reward model"

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": LINEAR}
MAX_PROMPT_LENGTH = 192


def cases(folder: Path, dataset_name: str) -> list[dict[str, Any]]:
    """The cases, each with all that its two sides need, in files below `folder`."""
    shared = {
        "folder": str(folder),
        "base": base_path("demo"),
        "lora": LORA,
        "texts": ["Yes, of course.", "I do not know.", "Ask a doctor.", "Because it rains a lot."],
        **_reward_model(folder),
        "prompts": _prompts(dataset_name, 32),
        "response_length": 64,
        "temperature": 1.0,
        "learning_rate": 1e-5,
        "count_flops": False,
    }
    one = {"batch_size": 16, "num_ppo_epochs": 1, "num_mini_batches": 1}
    four = {"batch_size": 4, "num_ppo_epochs": 4, "num_mini_batches": 4}
    named = [
        {"name": "one epoch", "peer_part": 16, **one},
        {"name": "one epoch, both in parts of 2", "peer_part": 2, **one},
        {"name": "four by four", "peer_part": 4, **four},
    ]
    return [{**shared, **case, "episodes": case["batch_size"]} for case in named]


def _prompts(dataset_name: str, count: int) -> list[Any]:
    """The first prompts of a dataset, each once, of at most MAX_PROMPT_LENGTH tokens."""
    tokenizer = open_tokenizer("demo")
    pairs = prepare(DataArguments(dataset_name=dataset_name)).pairs["train"]
    kept: list[Any] = []
    for pair in pairs:
        prompt = pair.prompt
        if prompt not in kept and len(prompt_ids(tokenizer, prompt)) <= MAX_PROMPT_LENGTH:
            kept.append(prompt)
        if len(kept) == count:
            break
    return kept


def _reward_model(folder: Path) -> dict[str, str]:
    """A reward adapter with random weights, and the same merged into a classifier for the peer."""
    adapter, merged = folder / "reward_adapter", folder / "reward_model"
    roles = Roles(open_base("demo"))
    roles.attach("reward", LoraConfig(**LORA), trainable=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    head = 0.1 * torch.randn(1, roles.base.config.hidden_size, generator=generator)
    roles.attach_head("reward", head, None, trainable=False)
    roles.save_role("reward", adapter)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        base_path("demo"), num_labels=1, dtype="float32"
    )
    classifier.config.pad_token_id = open_tokenizer("demo").pad_token_id
    PeftModel.from_pretrained(classifier, adapter).merge_and_unload().save_pretrained(merged)
    return {"reward_adapter": str(adapter), "merged_reward_model": str(merged)}
