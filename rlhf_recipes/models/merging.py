"""An adapter added into the weights of its base for a while: the cheapest way to run a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@contextmanager
def merged(base: Any, adapter: str) -> Iterator[None]:
    """W' = W + (alpha / r) B A in every layer that has that adapter, which must be the active one.

    The original weights are kept and put back, bit for bit: subtracting the product again would
    leave rounding errors behind. A model is merged whole or not at all, and then runs with the
    adapter beside its weights: see `_mergeable`.
    """
    layers: list[Any] = [
        module
        for module in base.modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    ]
    embeddings = base.get_input_embeddings().weight
    done: list[tuple[Any, nn.Parameter, Tensor]] = []
    try:
        if all(_mergeable(layer, adapter, embeddings) for layer in layers):
            for layer in layers:
                weight = layer.get_base_layer().weight
                done.append((layer, weight, weight.data))
                with torch.no_grad():
                    weight.data = weight.data + layer.get_delta_weight(adapter)
                layer.merged_adapters.append(adapter)  # PEFT: the weight has it already
        yield
    finally:
        for layer, weight, data in reversed(done):
            weight.data = data
            # Run with adapters off in between, PEFT has taken it out of the list.
            layer.merged_adapters = [name for name in layer.merged_adapters if name != adapter]


def _mergeable(layer: Any, adapter: str, embeddings: Tensor) -> bool:
    """Whether the weight alone can stand for a layer and its adapter.

    Not in lower precision than float32, which rounds the product away, so that the model would not
    be the policy; not with a bias or a variant of LoRA; not where the weight is the embeddings' too
    or has an adapter in it already.
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
