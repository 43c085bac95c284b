"""Merge an adapter into its base's weights for a while, which is the fastest way to run a model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

EXACT = (torch.float32,)
"""Dtypes of weights that an adapter is merged into where the outputs must stay the adapter's."""

ROUNDED = (*EXACT, torch.bfloat16, torch.float16)
"""Dtypes of weights that an adapter is merged into for sampling: the sum may be rounded."""


@contextmanager
def merged(base: Any, adapter: str, dtypes: Sequence[torch.dtype] = EXACT) -> Iterator[None]:
    """Merge the active adapter, then restore the original weights bit for bit.

    W' = W + (alpha / r) B A   in every layer that has the adapter.

    The original weights are stored, because subtracting the product would leave rounding errors.
    Meanwhile these layers take their memory twice.

    Args:
        dtypes: Dtypes of the weights that are merged; none merges nothing. The sum is computed in
            the adapter's float32 and rounded once to the weight's dtype.
    """
    originals: list[tuple[Any, nn.Parameter, Tensor]] = []
    try:
        for layer in mergeable_layers(base, adapter, dtypes):
            weight = layer.get_base_layer().weight
            originals.append((layer, weight, weight.data))
            with torch.no_grad():
                weight.data = (weight.data + layer.get_delta_weight(adapter)).to(weight.dtype)
            layer.merged_adapters.append(adapter)  # so that PEFT does not add it again
        yield
    finally:
        for layer, weight, data in reversed(originals):
            weight.data = data
            # A pass with adapters off has PEFT remove it from the list.
            layer.merged_adapters = [name for name in layer.merged_adapters if name != adapter]


def mergeable_layers(base: Any, adapter: str, dtypes: Sequence[torch.dtype] = EXACT) -> list[Any]:
    """List the layers that an adapter is merged into: all that have it, or none.

    If one layer cannot be merged (see `_is_mergeable`), none is, and the adapter runs unmerged.
    """
    layers: list[Any] = [
        module
        for module in base.modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    ]
    embeddings = base.get_input_embeddings().weight
    can_merge = all(_is_mergeable(layer, adapter, embeddings, dtypes) for layer in layers)
    return layers if can_merge else []


def _is_mergeable(
    layer: Any, adapter: str, embeddings: Tensor, dtypes: Sequence[torch.dtype]
) -> bool:
    """Return whether a layer's weight can include the adapter.

    It cannot if its dtype is not one of `dtypes`, as a quantized weight's never is; with a LoRA
    bias or a variant of LoRA; if the embeddings share the weight; or if an adapter is merged
    already.
    """
    weight = getattr(layer.get_base_layer(), "weight", None)
    plain = adapter not in layer.lora_variant and not layer.lora_bias.get(adapter, False)
    return (
        plain
        and not layer.merged_adapters
        and isinstance(weight, Tensor)
        and weight is not embeddings
        and weight.dtype in dtypes
        and weight.dim() == 2
    )
