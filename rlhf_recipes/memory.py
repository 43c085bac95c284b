"""How much memory a training process will need, estimated by part; nothing is allocated."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

FLOAT32 = 4

# Copies of the logits at the peak: themselves, their log-softmax, their gradient.
LOGITS_COPIES = 3

QUANTISED_BITS_OVERHEAD = 0.5  # a float32 scale for every 64 weights


@dataclass(frozen=True)
class Memory:
    """Bytes on one process, without sharding.

    `adapters` are those of all roles; `logits` include their gradient.
    """

    weights: int
    adapters: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    kv_cache: int

    @property
    def peak(self) -> int:
        """What lasts, plus the larger of what a training step and what sampling needs."""
        lasting = self.weights + self.adapters + self.gradients + self.optimiser
        return lasting + max(self.activations + self.logits, self.kv_cache)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder that its memory depends on."""

    layers: int
    width: int
    mlp_width: int
    kv_width: int  # of the keys of one token in one layer; the values have as many
    vocabulary: int


def architecture(config: Any) -> Architecture:
    """The sizes in a causal language model's configuration, whatever its names for them are."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Architecture(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        # GPT-2's `n_inner` and models without any such key: four times the width.
        mlp_width=getattr(text, "intermediate_size", None)
        or getattr(text, "n_inner", None)
        or 4 * text.hidden_size,
        kv_width=head_width * (getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=text.vocab_size,
    )


def weight_bytes(model: PreTrainedModel, size: int, bits: int | None) -> int:
    """Memory of a model's weights of so many bytes each.

    With quantisation to so many bits, the linear layers but the LM head have that size and a scale
    for every 64 weights; all else keeps its type.
    """
    total = sum(p.numel() for p in model.parameters()) * size
    if bits is None:
        return total
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return round(total - linear * (size - (bits + QUANTISED_BITS_OVERHEAD) / 8))


def optimiser_bytes(trainable: int, optimiser: str) -> int:
    """State of the optimiser: 2 float32 numbers a trainable parameter for Adam and its kin.

    2 bytes for 8-bit Adam; none for plain SGD and next to none for Adafactor, which keeps row and
    column sums.
    """
    if optimiser in ("sgd", "adafactor"):
        return 0
    return trainable * 2 * (1 if "8bit" in optimiser else FLOAT32)


def activation_bytes(
    sizes: Architecture, tokens: int, size: int, checkpointing: bool
) -> int:
    """What a forward pass over so many tokens keeps for the backward pass.

    A layer keeps 6 w + 2 k + 4 m numbers a token (w: width, k: width of the keys, m: width of the
    MLP): inputs of norms and projections, queries, keys, values, attention, and in the MLP the
    gate, its activation, the other branch and their product. Attention matrices are not kept
    (sdpa, flash). This counts a decoder of Llama's kind with LoRA on all linear layers; GPT-2 keeps
    40% more. With gradient checkpointing only the input of each layer is kept, and one layer's
    share is made again at a time.
    """
    layer = 6 * sizes.width + 2 * sizes.kv_width + 4 * sizes.mlp_width
    kept = sizes.layers * sizes.width + layer if checkpointing else sizes.layers * layer
    return tokens * kept * size


def logits_bytes(sizes: Architecture, tokens: int) -> int:
    """Logits of so many tokens in float32, their log-softmax and their gradient."""
    return tokens * sizes.vocabulary * FLOAT32 * LOGITS_COPIES


def kv_cache_bytes(sizes: Architecture, tokens: int, size: int) -> int:
    """Keys and values of so many tokens in all layers."""
    return tokens * sizes.layers * 2 * sizes.kv_width * size


def item_bytes(dtype: str | None, own: torch.dtype | None) -> int:
    """Bytes of one number of a recipe's `dtype`; `auto` and none stand for the model's own."""
    chosen = own if dtype in (None, "auto") else getattr(torch, dtype)
    return int((chosen or torch.float32).itemsize)
