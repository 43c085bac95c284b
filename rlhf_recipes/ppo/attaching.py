"""Attach PPO's four roles to a base: policy, value, reward and reference."""

import torch
from peft import LoraConfig, PeftConfig
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.loading import Base
from rlhf_recipes.models.logits import check_logits, head_width
from rlhf_recipes.roles import Roles

POLICY, VALUE, REWARD, REFERENCE = "policy", "value", "reward", "reference"


def attach_roles(
    roles: Roles,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: Adapter | None,
    peft_config: PeftConfig | None,
    sft_model: str | Adapter | None,
) -> None:
    """Attach the trainable policy and value, and the frozen reward model and reference model.

    The value model starts as a copy of the reward model. Without one it has a fresh LoRA like the
    policy's and a head of zeros, so it predicts 0. The reference model is the base with all
    adapters off, or a frozen copy of `sft_model` where the policy starts from that.

    Args:
        roles: A base without adapters.
        tokenizer: The tokenizer that all roles read the text of.
        reward_model: A reward adapter.
        peft_config: LoRA of the policy where there is no `sft_model`.
        sft_model: The adapter that the policy starts from, or its folder.

    Raises:
        RecipeError: If an adapter is of another base, tokenizer, chat template or kind, or if the
            policy has neither a LoRA configuration nor an adapter.
    """
    check_logits(roles.base)
    base = Base(str(roles.base.name_or_path), peft_config.revision if peft_config else None)
    if sft_model is not None:
        start = read_adapter(sft_model)
        start.check_base(base)
        start.check_policy()
        start.check_tokenizer(tokenizer, "sft_model_path")
        roles.attach_saved(POLICY, start, trainable=True)
        roles.attach_saved(REFERENCE, start, trainable=False)
    elif isinstance(peft_config, LoraConfig):
        roles.attach(POLICY, peft_config, trainable=True)
    else:
        raise RecipeError(
            "PPO trains LoRA adapters on a frozen base, and there is no LoRA configuration. Set "
            "`use_peft: true` (in Python `peft_config`), or start from an adapter with "
            "`sft_model_path`."
        )
    if reward_model is not None:
        reward_model.check_base(base)
        reward_model.check_head()
        reward_model.check_tokenizer(tokenizer, "reward_model_path")
        roles.attach_saved(REWARD, reward_model, trainable=False)
        roles.attach_saved(VALUE, reward_model, trainable=True)
        weight = reward_model.head["weight"]
    else:
        roles.attach(VALUE, roles.adapter_config(POLICY), trainable=True)
        weight = torch.zeros(1, head_width(roles.base))
    # The reward model's head has no bias; the value needs one to sit at the level of the scores.
    roles.attach_head(VALUE, weight, torch.zeros(1), trainable=True)
