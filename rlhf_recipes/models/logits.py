"""Compute logits from last hidden states: the head, then the architecture's scale and cap."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_recipes.errors import RecipeError


def logits_of(base: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """Compute a causal model's logits from its last hidden states.

    z = cap · tanh(scale · head(h) / cap), without a cap z = scale · head(h). Gemma 2 has a cap,
    Cohere and Granite have a scale, and most architectures have neither.
    """
    config = base.config.get_text_config()
    logits: Tensor = base.get_output_embeddings()(hidden_states)
    scale = logit_scale(config)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head_width(base: PreTrainedModel) -> int:
    """Return the width of the last hidden states, which is the input size of a scalar head.

    OPT-350m projects them to a width below `hidden_size`.
    """
    return int(base.get_output_embeddings().weight.shape[1])


def logit_scale(config: PreTrainedConfig) -> float:
    """Return the factor that an architecture multiplies its logits by.

    The names of that setting are those in TRL's fused head, so that all stages compute the same
    distribution. Architectures divide by `logits_scaling`, except HyperCLOVA X, which multiplies.
    """
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor)


@torch.no_grad()
def check_logits(base: PreTrainedModel) -> None:
    """Raise RecipeError if `logits_of` gives other logits than the model's own forward pass.

    Log-probabilities are computed from the last hidden states of completion tokens. If an
    architecture has a step after the head that `logits_of` lacks, they would describe another model
    than the one sampled from.
    """
    ids = torch.arange(1, 5, device=base.device)[None]
    expected = base(input_ids=ids).logits
    computed = logits_of(base, base.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(expected, computed, rtol=1e-2, atol=1e-2):
        raise RecipeError(
            f"`{base.name_or_path}` ({type(base).__name__}) changes its logits after the head in "
            "an unknown way: those computed from its last hidden states differ by up to "
            f"{float((expected - computed).abs().max()):.3g}, so log-probabilities would not be "
            "the model's. Use a base of another architecture, such as Llama, Qwen or GPT-2."
        )
