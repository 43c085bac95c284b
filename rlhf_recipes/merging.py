"""An adapter added into the weights of its base for a while: the cheapest way to run a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@contextmanager
def merged(base: nn.Module, adapter: str) -> Iterator[None]:
    """W' = W + (alpha / r) B A in every layer that has that adapter, which must be the active one.

    The original weights are kept and put back, bit for bit: subtracting the product again would
    leave rounding errors behind. Only float32 weights are merged: others would round the product
    away, and then the model would not be the policy. They run with the adapter beside them.
    """
    layers: list[Any] = [
        module
        for module in base.modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    ]
    originals: dict[nn.Parameter, Tensor] = {}
    try:
        if all(_mergeable(layer, adapter) for layer in layers):
            for layer in layers:
                weight = layer.get_base_layer().weight
                originals[weight] = weight.data
                weight.data = weight.data + layer.get_delta_weight(adapter)
                layer.merged_adapters.append(adapter)  # PEFT: the weight has it already
        yield
    finally:
        for weight, data in originals.items():
            weight.data = data
        for layer in layers:
            layer.merged_adapters.clear()


def _mergeable(layer: Any, adapter: str) -> bool:
    plain = adapter not in layer.lora_variant and not layer.merged_adapters
    return plain and layer.get_base_layer().weight.dtype == torch.float32
