"""Check that a LoRA can be a role: it adds to layers' outputs and does not change the base."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from peft import LoraConfig
from trl import ModelConfig, get_peft_config

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.loading import Base

HEAD_NAMES = ("score", "classifier")
"""Names that transformers gives the linear head of a sequence classifier."""

ADDITIVE = {
    *("base_model_name_or_path", "revision", "task_type", "peft_type", "auto_mapping"),
    *("peft_version", "inference_mode", "modules_to_save", "init_lora_weights", "loftq_config"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform"),
    "layers_pattern",
    *("fan_in_fan_out", "use_dora", "lora_bias", "eva_config", "qalora_group_size"),
    *("megatron_core", "ensure_weight_tying"),
}
"""Settings that a role can have: they shape what is added to a layer's output, or do nothing."""

HARMLESS_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that do not change the base's weights."""

DEFAULTS = {f.name: getattr(LoraConfig(), f.name, None) for f in fields(LoraConfig)}


def _unsupported(settings: Mapping[str, Any]) -> dict[str, Any]:
    """List settings of a LoRA that would change a shared base, or would not be applied."""
    unsupported = {
        name: value
        for name, value in settings.items()
        if name not in ADDITIVE and value not in (None, False, [], {}, DEFAULTS.get(name))
    }
    # A classifier's own head is the only module that is saved whole; it is not part of the base.
    modules = sorted({*(settings.get("modules_to_save") or ())} - {*HEAD_NAMES})
    unsupported |= {"modules_to_save": modules} if modules else {}
    unsupported |= {"bias": settings["bias"]} if settings.get("bias", "none") != "none" else {}
    if settings.get("init_lora_weights", True) not in HARMLESS_INITS:
        unsupported["init_lora_weights"] = settings["init_lora_weights"]
    return unsupported


def check_lora(settings: Mapping[str, Any], what: str) -> None:
    """Raise RecipeError, naming the settings, if `what` cannot be a role."""
    unsupported = _unsupported(settings)
    if unsupported:
        raise RecipeError(
            f"{what} is more than LoRA: "
            + ", ".join(f"`{name}: {value}`" for name, value in sorted(unsupported.items()))
            + ". All roles share one frozen base, and this would change it for all of them, or "
            "not be applied. Train without that setting (to train whole layers, name them in "
            "`lora_target_modules`), or merge the adapter into a copy of the base with PEFT's "
            "`merge_and_unload` and use that folder as `model_name_or_path`."
        )


def lora_config(model: ModelConfig) -> LoraConfig:
    """Return the LoRA configuration of a recipe, with the revision of its base.

    Raises RecipeError for what later stages would refuse to open, before it is trained.
    """
    config = get_peft_config(model)
    assert isinstance(config, LoraConfig), "every stage trains adapters"
    name = config.target_modules
    if isinstance(name, str) and name != "all-linear" and re.fullmatch(r"[\w.]+", name):
        # ModelConfig makes a string of a list of one name, which PEFT reads as a pattern.
        config.target_modules = [name]
    check_lora(config.to_dict(), "What the keys `lora_*` ask for")
    config.revision = Base.of(model).revision
    return config
