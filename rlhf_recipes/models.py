"""Open a base model and its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig

from rlhf_recipes.embedded import embedded_base
from rlhf_recipes.errors import RecipeError


def base_path(name: str) -> str:
    """What `from_pretrained` is to be given for a base model's name in a recipe.

    An embedded base (`demo`, `tiny`) is written to the Hugging Face cache on first use; a local
    folder or a Hub id stands for itself.
    """
    return str(embedded_base(name) or name)


def init_kwargs(model: ModelConfig) -> dict[str, Any]:
    """What `from_pretrained` is to be told about a recipe's model, quantisation apart."""
    return {
        "revision": model.model_revision,
        "dtype": model.dtype or "float32",
        "attn_implementation": model.attn_implementation,
    }


def open_base(name: str, **kwargs: Any) -> PreTrainedModel:
    """The causal language model of that name, float32 unless told otherwise, in evaluation mode."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base_path(name), **{"dtype": "float32", **kwargs}
        )
    except (OSError, ValueError) as error:
        raise RecipeError(_cannot_open("model", name, error)) from error
    model.eval()
    return model


def open_tokenizer(name: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model or run folder, with a padding token set.

    Args:
        name: Base model, or a run folder, whose tokenizer already has its chat template.
        chat_template: A Jinja file, for a base that comes without a chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_path(name))
    except (OSError, ValueError) as error:
        raise RecipeError(_cannot_open("tokenizer", name, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"`chat_template` names {chat_template}, which cannot be read "
                f"({error.strerror}). Give the path of a Jinja file, or leave the key out."
            ) from error
    return tokenizer


def _cannot_open(what: str, name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"The {what} of `{name}` cannot be opened: {reason} "
        "Give the Hub id of a causal language model, or a local folder written by "
        "`save_pretrained`; without a network it must be in the Hugging Face cache already."
    )


@torch.no_grad()
def refuse_scaled_logits(base: PreTrainedModel) -> None:
    """Raise RecipeError where a model's logits are more than its last layer's output.

    Everything here takes log-probabilities from that layer at completion tokens alone. Under a soft
    cap or a scale (Gemma 2, Cohere, Granite) they would be those of another model than is sampled.
    """
    ids = torch.arange(1, 5, device=base.device)[None]
    sampled = base(input_ids=ids).logits
    plain = base.get_output_embeddings()(base.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(sampled, plain, rtol=1e-2, atol=1e-2):
        raise RecipeError(
            f"`{base.name_or_path}` does more to its logits than its last layer "
            f"({type(base).__name__}: a soft cap or a scale), so log-probabilities taken from that "
            "layer would not be the model's. Take a base of another architecture, such as Llama, "
            "Qwen or GPT-2."
        )
