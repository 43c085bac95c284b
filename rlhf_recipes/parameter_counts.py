"""How many parameters a stage has and trains, counted on a model without weights."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from trl import ModelConfig

from rlhf_recipes.adapters import Adapter
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.lora import lora_config
from rlhf_recipes.models import Base, open_config
from rlhf_recipes.sharding import unsharded


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
    base = meta_model(Base.of(model), stage == "reward")
    size = _count(base.parameters())
    lora = lora_config(model)
    try:
        with torch.device("meta"):
            wrapped = get_peft_model(copy.deepcopy(base), lora)
    except ValueError as error:  # PEFT names the modules it did not find
        raise RecipeError(
            f"LoRA does not fit `{model.model_name_or_path}`: {error} Name linear layers of the "
            "base in `lora_target_modules`, or `all-linear`."
        ) from error
    trainable = _count(p for p in wrapped.parameters() if p.requires_grad)
    adapters = _count(wrapped.parameters()) - size
    if stage != "ppo":
        return base, Parameters(size, adapters, trainable)
    scorer, head = _scorer(lora, reward_model, base.config.hidden_size)
    merged = _count(
        module.get_base_layer().weight  # type: ignore[misc]  # PEFT's layers are loosely typed
        for module in wrapped.modules()
        if isinstance(module, LoraLayer)
    )
    with torch.device("meta"):
        wrapped.add_adapter("value", scorer)
    scorer_size = _count(wrapped.parameters()) - size - adapters
    value, reward = scorer_size + base.config.hidden_size + 1, scorer_size + head
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


def meta_model(base: Base, scored: bool = False) -> PreTrainedModel:
    """A base by its configuration alone: a language model, or with a scalar head if `scored`."""
    config = open_config(base.name, base.revision)
    config.num_labels = 1
    kind = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
    with unsharded(), torch.device("meta"):
        return kind.from_config(config)  # type: ignore[no-any-return]  # the Auto classes


def _scorer(lora: PeftConfig, adapter: Adapter | None, width: int) -> tuple[PeftConfig, int]:
    """The reward model's LoRA and the size of its head; those it would have if it is not there."""
    if adapter is None:
        return lora, width
    return copy.deepcopy(adapter.config), sum(t.numel() for t in adapter.head.values())


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
