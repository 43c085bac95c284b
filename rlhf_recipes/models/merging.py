"""Merge an adapter into its base's weights for a while, which is the fastest way to run a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@contextmanager
def merged(base: Any, adapter: str) -> Iterator[None]:
    """Merge the active adapter, then restore the original weights bit for bit.

    W' = W + (alpha / r) B A   in every layer that has the adapter.

    The original weights are stored, because subtracting the product would leave rounding errors.
    """
    originals: list[tuple[Any, nn.Parameter, Tensor]] = []
    try:
        for layer in mergeable_layers(base, adapter):
            weight = layer.get_base_layer().weight
            originals.append((layer, weight, weight.data))
            with torch.no_grad():
                weight.data = weight.data + layer.get_delta_weight(adapter)
            layer.merged_adapters.append(adapter)  # so that PEFT does not add it again
        yield
    finally:
        for layer, weight, data in reversed(originals):
            weight.data = data
            # A pass with adapters off has PEFT remove it from the list.
            layer.merged_adapters = [name for name in layer.merged_adapters if name != adapter]


def mergeable_layers(base: Any, adapter: str) -> list[Any]:
    """List the layers that an adapter is merged into: all that have it, or none.

    If one layer cannot be merged (see `_is_mergeable`), none is, and the adapter runs unmerged.
    """
    layers: list[Any] = [
        module
        for module in base.modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    ]
    embeddings = base.get_input_embeddings().weight
    return layers if all(_is_mergeable(layer, adapter, embeddings) for layer in layers) else []


def _is_mergeable(layer: Any, adapter: str, embeddings: Tensor) -> bool:
    """Return whether a layer's weight can include the adapter.

    It cannot in lower precision than float32, which would round the product away; with a LoRA bias
    or a variant of LoRA; if the embeddings share the weight; or if an adapter is merged already.
    """
    weight = getattr(layer.get_base_layer(), "weight", None)
    plain = adapter not in layer.lora_variant and not layer.lora_bias.get(adapter, False)
    return (
        plain
        and not layer.merged_adapters
        and isinstance(weight, Tensor)
        and weight is not embeddings
        and weight.dtype == torch.float32
        and weight.dim() == 2
    )
