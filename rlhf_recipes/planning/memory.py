"""How much memory a training process will need, estimated by part; nothing is allocated."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig

from rlhf_recipes.models.loading import Precision
from rlhf_recipes.planning.parameters import Parameters

FLOAT32 = 4

# Copies of the logits at the peak: themselves, their log-softmax, their gradient.
LOGITS_COPIES = 3

QUANTISED_BITS_OVERHEAD = 0.5  # a float32 scale for every 64 weights


@dataclass(frozen=True)
class Memory:
    """Bytes on one process, without sharding.

    `weights` are of all copies of the base, `adapters` of all roles; `logits` include their
    gradient; `merged` is the copy of those weights that an adapter is merged into for sampling.
    """

    weights: int
    adapters: int
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    merged: int = 0

    @property
    def peak(self) -> int:
        """What lasts, plus the larger of what a training step and what sampling needs."""
        lasting = self.weights + self.adapters + self.gradients + self.optimiser
        return lasting + max(self.activations + self.logits, self.kv_cache + self.merged)

    def parts(self) -> dict[str, int]:
        """The parts that are not empty, by name, and the peak."""
        parts = {name.replace("_", " "): size for name, size in vars(self).items() if size}
        return {**parts, "peak": self.peak}


def training_memory(
    stage: str,
    base: PreTrainedModel,
    parameters: Parameters,
    model: ModelConfig,
    training: Any,
    longest: int,
    scorer: Precision,
) -> Memory:
    """The estimate for a training stage whose longest row has so many tokens.

    GRPO loads the reward model on a base of its own, held as `scorer` says. PEFT keeps
    adapters in float32.
    """
    sizes = architecture(base.config)
    size = item_bytes(model.dtype or "float32", base.config.dtype)
    bits = Precision.read(vars(model)).bits
    scorer_size = item_bytes(scorer.dtype, base.config.dtype)
    scorers = weight_bytes(base, scorer_size, scorer.bits) if stage == "grpo" else 0
    rows = training.train_batch_size * (2 if stage in ("reward", "dpo") else 1)
    logits_rows = {"reward": 0, "dpo": longest}.get(
        stage, getattr(training, "max_completion_length", 0)
    )
    sampled = {
        "ppo": lambda: min(training.generation_batch_size, training.rollout_size),
        "grpo": lambda: training.generation_batch_size // training.world_size,
    }.get(stage, lambda: 0)()
    return Memory(
        weights=weight_bytes(base, size, bits) + scorers,
        adapters=parameters.adapters * FLOAT32,
        gradients=parameters.trainable * FLOAT32,
        optimiser=optimiser_bytes(parameters.trainable, training.optim, FLOAT32),
        activations=activation_bytes(
            sizes, rows * longest, size, training.activation_checkpointing
        ),
        logits=logits_bytes(sizes, rows * logits_rows),
        kv_cache=kv_cache_bytes(sizes, sampled * longest, size),
        merged=parameters.merged * size,
    )


def evaluation_memory(
    base: PreTrainedModel,
    parameters: Parameters,
    precision: Precision,
    arguments: Any,
    longest: int,
) -> Memory:
    """The estimate for sampling, with the policy's and the reference's logits for the exact KL."""
    sizes = architecture(base.config)
    size = item_bytes(precision.dtype, base.config.dtype)
    tokens = arguments.batch_size * arguments.max_completion_length
    return Memory(
        weights=weight_bytes(base, size, precision.bits),
        adapters=parameters.adapters * FLOAT32,
        logits=2 * logits_bytes(sizes, tokens),
        kv_cache=kv_cache_bytes(sizes, arguments.batch_size * longest, size),
    )


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


def optimiser_bytes(trainable: int, optimiser: str, size: int) -> int:
    """State of the optimiser: two numbers a trainable parameter for Adam and its kin.

    Two bytes for 8-bit Adam; none for plain SGD and next to none for Adafactor, which keeps row
    and column sums.
    """
    if optimiser in ("sgd", "adafactor"):
        return 0
    return trainable * 2 * (1 if "8bit" in optimiser else size)


def activation_bytes(sizes: Architecture, tokens: int, size: int, checkpointing: bool) -> int:
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


def item_bytes(dtype: str | None, own: Any) -> int:
    """Bytes of one number of a recipe's `dtype`; `auto` and none stand for the model's own type."""
    chosen = own if dtype in (None, "auto") else getattr(torch, dtype)
    return int((chosen or torch.float32).itemsize)
