"""Compute logits from last hidden states: the head, then an architecture's own scale and cap."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_recipes.errors import RecipeError


def logits_of(base: PreTrainedModel, states: Tensor) -> Tensor:
    """Compute the logits that a causal model makes of its last hidden states.

    z = cap · tanh(scale · head(h) / cap), without a cap z = scale · head(h). Gemma 2 has a cap,
    Cohere and Granite have a scale, and most architectures have neither.
    """
    config = base.config.get_text_config()
    logits: Tensor = base.get_output_embeddings()(states)
    scale = logit_scale(config)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head_width(base: PreTrainedModel) -> int:
    """Read the width of the last hidden states, which a scalar head takes as the model's own does.

    OPT-350m projects them, so that they are narrower than `hidden_size`.
    """
    return int(base.get_output_embeddings().weight.shape[1])


def logit_scale(config: PreTrainedConfig) -> float:
    """Read what an architecture multiplies its logits by, under the name that it has for it.

    The names, and that HyperCLOVA X alone multiplies by `logits_scaling`, are those that TRL's
    fused head knows, so that all stages see one distribution.
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
    """Raise RecipeError where `logits_of` gives other logits than the model's own forward pass.

    Log-probabilities are taken from the last hidden states at completion tokens alone. Where an
    architecture does more after them than is known here, they would be those of another model than
    the one that is sampled.
    """
    ids = torch.arange(1, 5, device=base.device)[None]
    sampled = base(input_ids=ids).logits
    ours = logits_of(base, base.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(sampled, ours, rtol=1e-2, atol=1e-2):
        raise RecipeError(
            f"`{base.name_or_path}` does more to its logits than is known here "
            f"({type(base).__name__}): those computed from its last hidden states are off by up to "
            f"{float((sampled - ours).abs().max()):.3g}, so log-probabilities would not be the "
            "model's. Take a base of another architecture, such as Llama, Qwen or GPT-2."
        )
