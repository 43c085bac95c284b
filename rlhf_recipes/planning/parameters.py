"""How many parameters a stage has and trains, counted on a model without weights."""

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
    """Numbers of parameters; those of tied weights count once.

    `adapters` are those of all roles with their heads, and `trainable` is a part of them. `merged`
    are the base's weights that get a second copy while an adapter is merged into them for sampling.
    """

    base: int
    adapters: int
    trainable: int
    merged: int = 0

    @property
    def total(self) -> int:
        """Base and adapters."""
        return self.base + self.adapters


def stage_parameters(
    stage: str, model: ModelConfig, reward_model: Adapter | None = None
) -> tuple[PreTrainedModel, Parameters]:
    """A training stage's base without weights, and its counts.

    PPO has the policy's LoRA, and the reward model's twice: as the frozen reward and as the start
    of the trained value, whose head has a bias as well.
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
    """The base of the first, without weights, and the counts with all; nothing is trained."""
    base = meta_model(adapters[0].base)
    sizes = sum(
        tensor.numel()
        for adapter in adapters
        for tensor in [*adapter.weights.values(), *adapter.head.values()]
    )
    return base, Parameters(_count(base.parameters()), sizes, 0)


def _with_lora(base: PreTrainedModel, lora: PeftConfig, name: str) -> PeftModel:
    """Wrap a copy of a base in LoRA, without weights; RecipeError where they do not fit."""
    try:
        with torch.device("meta"):
            return get_peft_model(copy.deepcopy(base), lora)
    except ValueError as error:  # PEFT says what it did not find, or cannot adapt
        remedy = "Name linear layers of the base in `lora_target_modules`, or `all-linear`."
        if "lora_dropout" in str(error):
            remedy = (
                "This architecture keeps what `lora_target_modules` names, its experts, in one "
                "tensor, which PEFT adapts without dropout alone. Set `lora_dropout: 0`, or name "
                "other layers."
            )
        raise RecipeError(f"LoRA does not fit `{name}`: {error} {remedy}") from error


def _merged(wrapped: PeftModel) -> int:
    """Count the weights under an adapter, or 0 where it cannot be merged: see `merging`."""
    layers = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in layers]
    found = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    return sum(weight.numel() for weight in found) if len(found) == len(weights) else 0


def _scorer(lora: PeftConfig, adapter: Adapter | None, width: int) -> tuple[PeftConfig, int]:
    """The reward model's LoRA and the size of its head; those it would have if it is not there."""
    if adapter is None:
        return lora, width
    return copy.deepcopy(adapter.config), sum(t.numel() for t in adapter.head.values())


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
