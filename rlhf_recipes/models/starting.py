"""Start a policy as a saved adapter: check that its LoRA is the recipe's, and load its weights."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor
from transformers import PreTrainedModel
from trl import ModelConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.models.loading import open_language_model
from rlhf_recipes.models.lora import lora_config

POLICY = "default"
"""Name that PEFT gives an adapter, and by which TRL's trainers find the policy."""

KEYS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
}
"""Key of a recipe, or of an adapter's configuration, for each setting that an adapter is made by.

The layers are compared by the names of their weights, because a pattern and a list may name the
same ones. Dropout is not compared: it is training's, and leaves no trace in an adapter.
"""


def open_policy(
    model: ModelConfig, start: Adapter | None, *, dropout: bool
) -> tuple[PreTrainedModel | PeftModel, LoraConfig | None]:
    """Open a recipe's base for the arguments `model` and `peft_config` of DPO's and GRPO's trainer.

    Without a start they are the base and the LoRA that the trainer adds. With one they are the base
    with its adapter, and None: the trainer then copies the adapter, and computes the reference with
    the frozen copy, the adapter `ref` on the same base. The copy is not saved: a resumed run makes
    it again from the start.

    Args:
        start: The adapter that the policy starts from; its LoRA is the recipe's.
        dropout: False sets every dropout probability of the base to 0.

    Raises RecipeError if the adapter does not fit the base.
    """
    base, lora = open_language_model(model, dropout=dropout), lora_config(model)
    if start is None:
        return base, lora
    base_weights = dict(base.named_parameters(remove_duplicate=False))
    policy = get_peft_model(base, lora)
    assert isinstance(policy, PeftModel)
    load_weights(policy, POLICY, start, base_weights)
    save_active_adapter_alone(policy)
    return policy, None


def save_active_adapter_alone(policy: PeftModel) -> None:
    """Make a model's `save_pretrained` write the adapter that is active now, and no other.

    PEFT would write each frozen adapter beside it too, into every checkpoint.
    """
    save: Any = partial(policy.save_pretrained, selected_adapters=[policy.active_adapter])
    policy.save_pretrained = save  # type: ignore[method-assign]  # of this model alone


def load_weights(
    model: PeftModel, name: str, adapter: Adapter, base_weights: Mapping[str, Tensor]
) -> None:
    """Replace the weights of a model's adapter `name` by those of a saved adapter.

    Only LoRA weights are handed to PEFT, which would write any other into the base.

    Args:
        base_weights: Weights of the base by their names before any adapter was attached.

    Raises RecipeError if the adapter lacks weights, has others, or was saved with base weights that
    differ from these.
    """
    base = str(model.get_base_model().name_or_path)
    _check_copies(base, adapter, base_weights)
    try:
        result: Any = set_peft_model_state_dict(model, dict(adapter.weights), adapter_name=name)
    except (RuntimeError, KeyError) as error:  # torch lists the weights of another size
        raise does_not_fit(base, adapter, str(error)) from error
    missing = [key for key in result.missing_keys if name in key.split(".")]
    for problem, names in (
        ("weights for layers that the base lacks", result.unexpected_keys),
        ("no weights for layers that its configuration adapts", missing),
    ):
        if names:
            raise does_not_fit(base, adapter, f"it has {problem}, such as {names[0]}")


def does_not_fit(base: str, adapter: Adapter, reason: str) -> RecipeError:
    """Return the error for an adapter whose layers or weights are not those of the base."""
    return RecipeError(
        f"The adapter in {adapter.folder} does not fit `{base}`: {reason}. "
        f"It was trained on {adapter.base}, and an adapter fits only its own base."
    )


def check_same_lora(start: Adapter, lora: LoraConfig, base: PreTrainedModel) -> None:
    """Raise RecipeError unless a recipe's LoRA has the layers, ranks and scale of the start.

    Args:
        base: The base without weights, on the meta device.
    """
    try:
        with torch.device("meta"):
            model: Any = get_peft_model(copy.deepcopy(base), lora)
    except ValueError:
        return  # the recipe's LoRA does not fit the base, which the plan refuses
    # As adapted: PEFT sets patterns itself where experts are one tensor.
    recipe, trained = model.peft_config[POLICY].to_dict(), start.config.to_dict()
    differences = [
        f"`{key}` is {recipe[setting]} and {trained[setting]}"
        for setting, key in KEYS.items()
        if recipe[setting] != trained[setting]
    ]
    names = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if only := sorted(names ^ start.weights.keys()):
        place = "the recipe's" if only[0] in names else "the adapter's"
        differences.append(f"`lora_target_modules` differ: only {place} have {only[0]}")
    if differences:
        raise RecipeError(
            f"The policy starts as the adapter in `sft_model_path` ({start.folder}), and the LoRA "
            f"of the recipe is another than the adapter's: {'; '.join(differences)}. Set the keys "
            "`lora_*` to those that it was trained with, or train it again with the recipe's."
        )


def _check_copies(base: str, adapter: Adapter, base_weights: Mapping[str, Tensor]) -> None:
    """Raise RecipeError where base weights saved with an adapter differ from this base's."""
    for name, tensor in adapter.copies.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        weight = base_weights.get(plain)
        if weight is None or not torch.equal(weight.detach(), tensor.to(weight)):
            raise RecipeError(
                f"The adapter in {adapter.folder} has another `{name}` than the base `{base}`, "
                "which all roles share. Loading it would change the base. Train the adapter "
                "without changing that layer or the vocabulary, or merge it into a copy of the "
                "base with PEFT's `merge_and_unload` and use that folder as `model_name_or_path`."
            )
