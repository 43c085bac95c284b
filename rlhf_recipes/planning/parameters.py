"""Count the parameters that a stage holds and trains, on a model without weights."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import ModelConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.models.architectures import check_decoder, meta_classifier, meta_model
from rlhf_recipes.models.loading import Base
from rlhf_recipes.models.logits import head_width
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.rules.kinds import ONLINE


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; tied weights count once.

    `adapters` counts the adapters and heads of all roles, and `trainable` those of them that are
    trained.
    """

    base: int
    adapters: int
    trainable: int

    @property
    def total(self) -> int:
        """Parameters of the base and the adapters."""
        return self.base + self.adapters


def stage_parameters(
    stage: str,
    model: ModelConfig,
    reward_model: Adapter | None = None,
    *,
    has_reference: bool = False,
    scored: bool = True,
) -> tuple[PreTrainedModel, Parameters]:
    """Return a training stage's base without weights, and its parameter counts.

    GRPO and PPO hold the reward model. PPO also holds the value model, which is another copy of its
    LoRA with a bias in addition (of the policy's LoRA where there is no reward model).

    Args:
        reward_model: None for a reward model that is not trained yet. It is then assumed to have
            the policy's LoRA configuration.
        has_reference: Whether the reference model is a frozen copy of the adapter that the policy
            starts from, whose LoRA is the recipe's.
        scored: Whether there is a reward model, in GRPO and PPO.

    Raises RecipeError if the LoRA configuration does not fit the base.
    """
    base = meta_model(Base.of(model))
    if stage == "reward":
        classifier = meta_classifier(Base.of(model))
        check_decoder(base, classifier)
        base = classifier
    size = _count(base.parameters())
    wrapped = with_lora(base, lora_config(model), str(model.model_name_or_path))
    trainable = _count(p for p in wrapped.parameters() if p.requires_grad)
    policy = _count(wrapped.parameters()) - size
    adapters = policy * (2 if has_reference else 1)
    if stage not in ONLINE:
        return base, Parameters(size, adapters, trainable)
    width = head_width(base)
    scorer = policy if reward_model is None else _size(reward_model.weights)
    head = width if reward_model is None else _size(reward_model.head)
    reward = scorer + head if scored else 0
    if stage == "grpo":
        return base, Parameters(size, adapters + reward, trainable)
    value = scorer + width + 1
    return base, Parameters(size, adapters + value + reward, trainable + value)


def evaluation_parameters(adapters: Sequence[Adapter]) -> tuple[PreTrainedModel, Parameters]:
    """Return the first adapter's base without weights, and the counts with all adapters."""
    base = meta_model(adapters[0].base)
    sizes = [_size(adapter.weights) + _size(adapter.head) for adapter in adapters]
    return base, Parameters(_count(base.parameters()), sum(sizes), 0)


def with_lora(base: PreTrainedModel, lora: PeftConfig, name: str) -> PeftModel:
    """Return a copy of the base with LoRA, without weights; RecipeError if they do not fit."""
    lora = copy.deepcopy(lora)
    # PEFT writes the model's name there, and would warn that a saved adapter's is another one.
    lora.base_model_name_or_path = None
    try:
        with torch.device("meta"):
            return get_peft_model(copy.deepcopy(base), lora)
    except ValueError as error:  # its text says which layers PEFT did not find or cannot adapt
        remedy = "Name linear layers of the base in `lora_target_modules`, or `all-linear`."
        if "lora_dropout" in str(error):
            remedy = (
                "This architecture stores its experts, which `lora_target_modules` names, in one "
                "tensor, and PEFT adapts such a tensor only without dropout. Set `lora_dropout: "
                "0`, or name other layers."
            )
        raise RecipeError(f"LoRA does not fit `{name}`: {error} {remedy}") from error


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
