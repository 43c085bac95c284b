"""Estimate the memory of a process by component, without allocating any."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from trl import ModelConfig

from rlhf_recipes.models.loading import Precision
from rlhf_recipes.planning.parameters import Parameters

FLOAT32 = 4

LOGITS_COPIES = 3  # at the peak: logits, log-softmax, gradient

SCALE_BITS = 0.5  # bits per quantized weight for the scales: one float32 for 64 weights


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of one process, without sharding.

    `weights` covers all copies of the base and `adapters` all roles. `logits` includes the
    log-softmax and the gradient. `merged` is the second copy of the weights into which an adapter
    is merged for sampling.
    """

    weights: int
    adapters: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    merged: int = 0

    @property
    def peak(self) -> int:
        """Persistent memory plus the larger of what a training step and what sampling needs."""
        persistent = self.weights + self.adapters + self.gradients + self.optimizer
        return persistent + max(self.activations + self.logits, self.kv_cache + self.merged)

    def by_component(self) -> dict[str, int]:
        """Return the components that are not 0, by name, and the peak."""
        sizes = {name.replace("_", " "): size for name, size in vars(self).items() if size}
        return {**sizes, "peak": self.peak}


def training_memory(
    stage: str,
    base: PreTrainedModel,
    parameters: Parameters,
    model: ModelConfig,
    training: Any,
    longest: int,
    scorer: Precision,
) -> Memory:
    """Estimate the memory of a training stage.

    GRPO loads the reward model on a second base. PEFT keeps adapters in float32.

    Args:
        base: The base model, without weights.
        longest: Tokens of the longest row.
        scorer: Dtype and quantization of the reward model's base.
    """
    sizes = architecture(base.config)
    item_size = item_bytes(model.dtype or "float32", base.config.dtype)
    bits = Precision.read(vars(model)).bits
    scorer_item_size = item_bytes(scorer.dtype, base.config.dtype)
    scorers = weight_bytes(base, scorer_item_size, scorer.bits) if stage == "grpo" else 0
    rows = training.train_batch_size * (2 if stage in ("reward", "dpo") else 1)
    logits_per_row = {"reward": 0, "dpo": longest}.get(
        stage, getattr(training, "max_completion_length", 0)
    )
    sampled = {
        "ppo": lambda: min(training.generation_batch_size, training.rollout_size),
        "grpo": lambda: training.generation_batch_size // training.world_size,
    }.get(stage, lambda: 0)()
    return Memory(
        weights=weight_bytes(base, item_size, bits) + scorers,
        adapters=parameters.adapters * FLOAT32,
        gradients=parameters.trainable * FLOAT32,
        optimizer=optimizer_bytes(parameters.trainable, training.optim, FLOAT32),
        activations=activation_bytes(
            sizes, rows * longest, item_size, training.activation_checkpointing
        ),
        logits=logits_bytes(sizes, rows * logits_per_row),
        kv_cache=kv_cache_bytes(sizes, sampled * longest, item_size),
        merged=parameters.merged * item_size,
    )


def evaluation_memory(
    base: PreTrainedModel,
    parameters: Parameters,
    precision: Precision,
    arguments: Any,
    longest: int,
) -> Memory:
    """Estimate the memory of an evaluation.

    The exact KL needs the logits of the policy and of the reference at once.
    """
    sizes = architecture(base.config)
    item_size = item_bytes(precision.dtype, base.config.dtype)
    tokens = arguments.batch_size * arguments.max_completion_length
    return Memory(
        weights=weight_bytes(base, item_size, precision.bits),
        adapters=parameters.adapters * FLOAT32,
        logits=2 * logits_bytes(sizes, tokens),
        kv_cache=kv_cache_bytes(sizes, arguments.batch_size * longest, item_size),
    )


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder that determine its memory."""

    num_layers: int
    hidden_size: int
    mlp_size: int
    key_size: int  # of all heads, for one token in one layer; values have the same size
    vocab_size: int


def architecture(config: Any) -> Architecture:
    """Read the sizes from a causal language model's configuration."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Architecture(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        # GPT-2 calls it `n_inner`; where neither is set it is four times the hidden size.
        mlp_size=getattr(text, "intermediate_size", None)
        or getattr(text, "n_inner", None)
        or 4 * text.hidden_size,
        key_size=head_size * (getattr(text, "num_key_value_heads", None) or heads),
        vocab_size=text.vocab_size,
    )


def weight_bytes(model: PreTrainedModel, item_size: int, bits: int | None) -> int:
    """Return the bytes of a model's weights.

    Args:
        item_size: Bytes per weight that is not quantized.
        bits: Bits per quantized weight, or None. The linear layers are quantized except for the
            language-model head, with one float32 scale for 64 weights.
    """
    total = sum(p.numel() for p in model.parameters()) * item_size
    if bits is None:
        return total
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return round(total - linear * (item_size - (bits + SCALE_BITS) / 8))


def optimizer_bytes(trainable: int, optimizer: str, item_size: int) -> int:
    """Return the bytes of the optimizer's state: two numbers per trainable parameter for Adam.

    8-bit Adam keeps two bytes per parameter. Plain SGD keeps nothing, and Adafactor next to
    nothing: sums over rows and columns.
    """
    if optimizer in ("sgd", "adafactor"):
        return 0
    return trainable * 2 * (1 if "8bit" in optimizer else item_size)


def activation_bytes(sizes: Architecture, tokens: int, item_size: int, checkpointing: bool) -> int:
    """Return the bytes that a forward pass over `tokens` tokens saves for the backward pass.

    A layer saves 6 h + 2 k + 4 m numbers per token (h: hidden size, k: size of the keys, m: size of
    the MLP): inputs of norms and projections, queries, keys, values, attention output, and in the
    MLP the gate, its activation, the up projection and their product. Attention matrices are not
    saved (sdpa, flash). This holds for a decoder like Llama with LoRA on all linear layers; GPT-2
    saves 40% more. With gradient checkpointing only the input of each layer is saved, and one
    layer at a time is recomputed.
    """
    layer = 6 * sizes.hidden_size + 2 * sizes.key_size + 4 * sizes.mlp_size
    if checkpointing:
        return tokens * (sizes.num_layers * sizes.hidden_size + layer) * item_size
    return tokens * sizes.num_layers * layer * item_size


def logits_bytes(sizes: Architecture, tokens: int) -> int:
    """Return the bytes of float32 logits of `tokens` tokens, their log-softmax and gradient."""
    return tokens * sizes.vocab_size * FLOAT32 * LOGITS_COPIES


def kv_cache_bytes(sizes: Architecture, tokens: int, item_size: int) -> int:
    """Return the bytes of the keys and values of `tokens` tokens in all layers."""
    return tokens * sizes.num_layers * 2 * sizes.key_size * item_size


def item_bytes(dtype: str | None, model_dtype: Any) -> int:
    """Return the bytes of one number of a recipe's `dtype`; None and `auto` mean the model's."""
    torch_dtype = model_dtype if dtype in (None, "auto") else getattr(torch, dtype)
    return int((torch_dtype or torch.float32).itemsize)
