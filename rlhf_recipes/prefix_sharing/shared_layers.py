"""A decoder cut in two: the layers below every adapter, which all roles share, and the rest."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

# Their decoder is embeddings, `layers`, `norm`, and gives hidden states to a layer unchanged.
TRUNK_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def lowest_adapted_layer(base: PreTrainedModel) -> int:
    """How many layers lie below every adapter; 0 where the architecture cannot be cut."""
    config = base.config
    if config.model_type not in TRUNK_TYPES or len(set(getattr(config, "layer_types", ()))) > 1:
        return 0
    names = [name for name, module in base.named_modules() if isinstance(module, LoraLayer)]
    layers = [re.search(r"\.layers\.(\d+)\.", name) for name in names]
    return min((int(found[1]) if found else 0 for found in layers), default=0)


def frozen_depth(base: PreTrainedModel) -> int:
    """How many layers lie below every adapter and, like the embeddings, never change."""
    decoder: Any = base.base_model
    depth = lowest_adapted_layer(base)
    below = [base.get_input_embeddings(), *(decoder.layers[:depth] if depth else ())]
    return 0 if any(p.requires_grad for part in below for p in part.parameters()) else depth


@contextmanager
def only_layers(base: PreTrainedModel, part: slice) -> Iterator[None]:
    """Leave that part of the decoder's layers, and the final norm only with the last."""
    decoder: Any = base.base_model
    layers, norm = decoder.layers, decoder.norm
    decoder.layers = layers[part]
    if part.stop is not None:
        decoder.norm = nn.Identity()
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm


def trunk_input(base: PreTrainedModel, trunk: Tensor) -> Tensor:
    """A trunk as the layers above take it; reentrant checkpointing wants a gradient to flow in."""
    checkpointing = getattr(base.base_model, "gradient_checkpointing", False)
    return trunk.detach().requires_grad_(checkpointing and torch.is_grad_enabled())
