"""Check what the stages need of an architecture, on its classes and configuration: no weights."""

import inspect

from transformers import PreTrainedModel

from rlhf_recipes.errors import RecipeError


def check_sampler(model: PreTrainedModel) -> None:
    """Raise RecipeError where a model takes no cache of keys and values.

    Mamba and RWKV have a cache of another kind. They would ignore the one that is given, and see
    each new token without those before it.
    """
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        raise RecipeError(
            f"`{model.name_or_path}` ({type(model).__name__}) takes no `past_key_values`, so its "
            "completions cannot be sampled token by token, and what is trained here is sampled "
            "sooner or later. Take a base with attention layers, such as Llama, Qwen or LFM2."
        )
