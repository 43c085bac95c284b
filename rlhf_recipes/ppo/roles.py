"""PPO's four roles, and how each starts."""

import torch
from peft import LoraConfig, PeftConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import Adapter, read_adapter
from rlhf_recipes.models.loading import Base
from rlhf_recipes.models.logits import check_logits, head_width
from rlhf_recipes.roles import Roles

POLICY, VALUE, REWARD, REFERENCE = "policy", "value", "reward", "reference"


def attach_roles(
    roles: Roles,
    reward_model: str | Adapter | None,
    peft_config: PeftConfig | None,
    sft_model: str | Adapter | None,
) -> None:
    """Give a bare base policy and value, which train, and reward and reference, which do not.

    The value starts as the reward model; without one it has the policy's LoRA and predicts 0. The
    reference is the base itself, with all adapters off, unless the policy starts from an adapter:
    then it is a frozen copy of that.
    """
    check_logits(roles.base)
    base = Base(str(roles.base.name_or_path), peft_config.revision if peft_config else None)
    if sft_model is not None:
        start = read_adapter(sft_model)
        start.check_base(base)
        start.check_policy()
        roles.attach_saved(POLICY, start, trainable=True)
        roles.attach_saved(REFERENCE, start, trainable=False)
    elif isinstance(peft_config, LoraConfig):
        roles.attach(POLICY, peft_config, trainable=True)
    else:
        raise RecipeError(
            "PPO trains LoRA adapters on a frozen base, and the recipe has `use_peft: false`. "
            "Set `use_peft: true`, or start from an adapter with `sft_model_path`."
        )
    if reward_model is not None:
        reward = read_adapter(reward_model)
        reward.check_base(base)
        reward.check_head()
        roles.attach_saved(REWARD, reward, trainable=False)
        roles.attach_saved(VALUE, reward, trainable=True)
        weight = reward.head["weight"]
    else:
        roles.attach(VALUE, roles.adapter_config(POLICY), trainable=True)
        weight = torch.zeros(1, head_width(roles.base))
    # The reward model's head has no bias; the value needs one to sit at the scores' level.
    roles.attach_head(VALUE, weight, torch.zeros(1), trainable=True)
