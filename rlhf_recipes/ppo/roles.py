"""PPO's four roles, and how each starts."""

import torch
from peft import LoraConfig, PeftConfig

from rlhf_recipes.adapters import assert_same_base, read_adapter, require_head
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.roles import Roles

POLICY, VALUE, REWARD, REFERENCE = "policy", "value", "reward", "reference"


def attach_roles(
    roles: Roles,
    reward_model_path: str | None,
    peft_config: PeftConfig | None,
    sft_model_path: str | None,
) -> None:
    """Give a bare base policy and value, which train, and reward and reference, which do not.

    The value starts as the reward model; without one it has the policy's LoRA and predicts 0. The
    reference is the base itself, with all adapters off, unless the policy starts from an adapter:
    then it is a frozen copy of that.
    """
    base = roles.base
    if sft_model_path is not None:
        assert_same_base(sft_model_path, str(base.name_or_path))
        roles.attach_saved(POLICY, sft_model_path, trainable=True)
        roles.attach_saved(REFERENCE, sft_model_path, trainable=False)
    elif isinstance(peft_config, LoraConfig):
        roles.attach(POLICY, peft_config, trainable=True)
    else:
        raise RecipeError(
            "PPO trains LoRA adapters on a frozen base, and the recipe has `use_peft: false`. "
            "Set `use_peft: true`, or start from an adapter with `sft_model_path`."
        )
    if reward_model_path is not None:
        assert_same_base(reward_model_path, str(base.name_or_path))
        require_head(reward_model_path)
        roles.attach_saved(REWARD, reward_model_path, trainable=False)
        roles.attach_saved(VALUE, reward_model_path, trainable=True)
        weight = read_adapter(reward_model_path)[2]["weight"]
    else:
        roles.attach(VALUE, roles.adapter_config(POLICY), trainable=True)
        weight = torch.zeros(1, base.config.hidden_size)
    # The reward model's head has no bias; the value needs one to sit at the scores' level.
    roles.attach_head(VALUE, weight, torch.zeros(1), trainable=True)
