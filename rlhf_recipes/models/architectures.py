"""Check what the stages need of an architecture, from its classes and configuration alone."""

import inspect
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.dropout import has_dropout
from rlhf_recipes.models.loading import Base, classifier_config, open_config
from rlhf_recipes.sharding import unsharded


def meta_model(base: Base) -> PreTrainedModel:
    """Build the language model of a base without weights, from its configuration."""
    config = open_config(base.name, base.revision)
    with unsharded(), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.name_or_path = base.name
    return model


def meta_classifier(base: Base) -> PreTrainedModel:
    """Build the sequence classifier of a base without weights, from its configuration."""
    with unsharded(), torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            classifier_config(base.name, base.revision)
        )
    return model


def check_sampler(model: PreTrainedModel) -> None:
    """Raise RecipeError if a model takes no cache of keys and values.

    Mamba and RWKV have a cache of another kind. They would ignore this one, and would compute each
    new token without the tokens before it.
    """
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        raise RecipeError(
            f"`{model.name_or_path}` ({type(model).__name__}) takes no `past_key_values`, so its "
            "completions cannot be sampled token by token, which training or evaluation has to "
            "do. Use a base with attention layers, such as Llama, Qwen or LFM2."
        )


def check_decoder(model: PreTrainedModel, classifier: PreTrainedModel) -> None:
    """Raise RecipeError if a classifier's adapter would not fit the language model.

    PPO, GRPO and evaluation attach a reward adapter to the language model, as one of several roles.
    """
    names, others = ({n for n, _ in m.base_model.named_parameters()} for m in (model, classifier))
    if model.base_model_prefix != classifier.base_model_prefix or names != others:
        example = min(names ^ others, default=classifier.base_model_prefix)
        raise RecipeError(
            f"The sequence classifier of `{model.name_or_path}` ({type(classifier).__name__}) has "
            f"another decoder than its language model ({type(model).__name__}): only one of them "
            f"has `{example}`. A reward adapter trained on it would fit no later stage. Use a "
            "base of another architecture, such as Llama, Qwen or GPT-2."
        )


def check_router_loss(model: PreTrainedModel, coefficient: float | None) -> None:
    """Raise RecipeError if TRL cannot compute the router loss that it would add.

    Args:
        coefficient: `router_aux_loss_coef` of the recipe; None takes the model's.
    """
    config: Any = model.config.get_text_config()
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if not hasattr(config, "output_router_logits") or not coefficient:
        return
    missing = [n for n in ("num_experts", "num_experts_per_tok") if not hasattr(config, n)]
    if missing:
        raise RecipeError(
            f"TRL adds {coefficient} times the load-balancing loss of a mixture of experts, which "
            f"it computes with `{missing[0]}`, and the configuration of `{model.name_or_path}` "
            f"({type(config).__name__}) has no such entry. Set `router_aux_loss_coef: 0`."
        )


def check_dropout(model: PreTrainedModel) -> None:
    """Raise RecipeError if a base has dropout that a recipe leaves on in GRPO.

    Completions are sampled without dropout. With it, policy and reference differ before any step:
    GPT-2's KL at step 0 is about 0.3 nats per token instead of 0.
    """
    if has_dropout(model):
        raise RecipeError(
            f"`{model.name_or_path}` has dropout and `disable_dropout` is false: the policy and "
            "its reference would be two random subnetworks, neither the one that is sampled from. "
            "Set `disable_dropout: true`."
        )
