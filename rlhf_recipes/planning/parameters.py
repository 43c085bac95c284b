"""Count the parameters that a stage holds and trains, on a model without weights."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.models.architectures import check_decoder, meta_classifier, meta_model
from rlhf_recipes.models.loading import Base
from rlhf_recipes.models.logits import head_width
from rlhf_recipes.models.lora import lora_config


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; tied weights count once.

    `adapters` counts the adapters and heads of all roles, and `trainable` those of them that are
    trained. `merged` counts the weights of the base that are copied while an adapter is merged into
    them for sampling.
    """

    base: int
    adapters: int
    trainable: int
    merged: int = 0

    @property
    def total(self) -> int:
        """Parameters of the base and the adapters."""
        return self.base + self.adapters


def stage_parameters(
    stage: str, model: ModelConfig, reward_model: Adapter | None = None
) -> tuple[PreTrainedModel, Parameters]:
    """Return a training stage's base without weights, and its parameter counts.

    PPO holds the policy's LoRA adapter and the reward model's twice: as the frozen reward model and
    as the initialization of the value model, whose head has a bias in addition.

    Args:
        reward_model: None, in PPO, for a reward model that is not trained yet. It is then assumed
            to have the policy's LoRA configuration.

    Raises RecipeError if the LoRA configuration does not fit the base.
    """
    base = meta_model(Base.of(model))
    if stage == "reward":
        classifier = meta_classifier(Base.of(model))
        check_decoder(base, classifier)
        base = classifier
    size = _count(base.parameters())
    lora = lora_config(model)
    wrapped = _with_lora(base, lora, str(model.model_name_or_path))
    trainable = _count(p for p in wrapped.parameters() if p.requires_grad)
    adapters = _count(wrapped.parameters()) - size
    if stage != "ppo":
        return base, Parameters(size, adapters, trainable)
    width = head_width(base)
    scorer, head = _scorer(lora, reward_model, width)
    merged = _merged(wrapped)
    with torch.device("meta"):
        wrapped.add_adapter("value", scorer)
    scorer_size = _count(wrapped.parameters()) - size - adapters
    value, reward = scorer_size + width + 1, scorer_size + head
    return base, Parameters(size, adapters + value + reward, trainable + value, merged)


def evaluation_parameters(adapters: Sequence[Adapter]) -> tuple[PreTrainedModel, Parameters]:
    """Return the first adapter's base without weights, and the counts with all adapters."""
    base = meta_model(adapters[0].base)
    adapter_parameters = sum(
        tensor.numel()
        for adapter in adapters
        for tensor in [*adapter.weights.values(), *adapter.head.values()]
    )
    return base, Parameters(_count(base.parameters()), adapter_parameters, 0)


def _with_lora(base: PreTrainedModel, lora: PeftConfig, name: str) -> PeftModel:
    """Return a copy of the base with LoRA, without weights; RecipeError if they do not fit."""
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


def _merged(wrapped: PeftModel) -> int:
    """Count the weights that an adapter is merged into; 0 if it cannot be merged (`merging`)."""
    layers = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    tensors = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    return sum(tensor.numel() for tensor in tensors) if len(tensors) == len(weights) else 0


def _scorer(lora: PeftConfig, adapter: Adapter | None, width: int) -> tuple[PeftConfig, int]:
    """Return the LoRA configuration of the reward model and the number of its head's weights."""
    if adapter is None:
        return lora, width
    return copy.deepcopy(adapter.config), sum(t.numel() for t in adapter.head.values())


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
