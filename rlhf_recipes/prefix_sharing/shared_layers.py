"""Split a decoder into shared layers, below the lowest adapter, and the layers above them.

Shared layers give the same output for every role, so they are computed once for all roles.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

SPLITTABLE = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose decoder is embeddings, `layers` and `norm`, with nothing in between."""


def num_shared_layers(base: PreTrainedModel) -> int:
    """Return the number of layers below the lowest adapter; 0 if the decoder cannot be split."""
    config = base.config
    if config.model_type not in SPLITTABLE or len(set(getattr(config, "layer_types", ()))) > 1:
        return 0
    names = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    matches = [re.search(r"\.layers\.(\d+)\.", name) for name in names]
    return min((int(match[1]) if match else 0 for match in matches), default=0)


def num_frozen_shared_layers(base: PreTrainedModel) -> int:
    """Return `num_shared_layers`, or 0 if one of those layers or an embedding is trained."""
    decoder: Any = base.base_model
    number = num_shared_layers(base)
    modules = [base.get_input_embeddings(), *(decoder.layers[:number] if number else ())]
    trained = any(p.requires_grad for module in modules for p in module.parameters())
    return 0 if trained else number


@contextmanager
def only_layers(base: PreTrainedModel, selected: slice) -> Iterator[None]:
    """Limit the decoder to the selected layers; the final norm runs only after the last layer."""
    decoder: Any = base.base_model
    layers, norm = decoder.layers, decoder.norm
    decoder.layers = layers[selected]
    if selected.stop is not None:
        decoder.norm = nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm


def upper_layer_input(base: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """Detach the shared layers' output; with gradient checkpointing it requires a gradient.

    Reentrant checkpointing computes no gradients for a segment none of whose inputs requires one.
    """
    checkpointing = getattr(base.base_model, "gradient_checkpointing", False)
    return hidden_states.detach().requires_grad_(checkpointing and torch.is_grad_enabled())
