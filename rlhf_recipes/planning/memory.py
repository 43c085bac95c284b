"""Estimate the memory of a process by component, without allocating any."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.measuring import TOKENS_AT_ONCE
from rlhf_recipes.evaluation.collect.provenance import Adapters
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.architectures import meta_model
from rlhf_recipes.models.classifiers import Classifier
from rlhf_recipes.models.loading import Precision
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.models.merging import EXACT, ROUNDED, mergeable_layers
from rlhf_recipes.planning.parameters import Parameters, with_lora
from rlhf_recipes.rules.kinds import ONLINE

FLOAT32 = 4

LOGITS_COPIES = 3  # at the peak: logits, log-softmax, gradient

TILE_TOKENS, TILE_WIDTH = 4096, 32768
"""Largest part of the logits that TRL's fused head computes at once, in tokens and vocabulary."""

SCALE_BITS = 0.5  # bits per quantized weight for the scales: one float32 for 64 weights

STEP = ("activations", "logits")
SAMPLING = ("kv_cache", "merged")
MEASURING = ("logits", "merged")
"""Components that are in memory at once, beside the weights, adapters, gradients and optimizer."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes of one process, without sharding.

    `weights` covers all copies of the base and `adapters` all roles. `logits` includes the
    log-softmax and the gradient. `merged` is the second copy of the weights into which an adapter
    is merged for sampling or scoring. `phases` says which components are in memory at once.
    """

    weights: int
    adapters: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    merged: int = 0
    phases: tuple[tuple[str, ...], ...] = (STEP, SAMPLING)

    @property
    def peak(self) -> int:
        """Persistent memory plus what the largest phase needs."""
        persistent = self.weights + self.adapters + self.gradients + self.optimizer
        largest: int = max(sum(getattr(self, x) for x in phase) for phase in self.phases)
        return persistent + largest

    def by_component(self) -> dict[str, int]:
        """Return the components that are not 0, by name, and the peak."""
        names = [field.name for field in fields(self) if field.name != "phases"]
        sizes = {name.replace("_", " "): getattr(self, name) for name in names}
        return {name: size for name, size in sizes.items() if size} | {"peak": self.peak}


def training_memory(inputs: Inputs, base: PreTrainedModel, parameters: Parameters) -> Memory:
    """Estimate the memory of a training stage.

    PEFT keeps adapters in float32. TRL's trainers compute logits in tiles, PPO those of a whole
    micro-batch. A reward model merges its adapter too: that of GRPO and PPO for the scores, that of
    the reward stage for its review. GRPO opens a second base only where the reward model is of
    another base or precision than the policy. A whole classifier is a second model.

    Args:
        base: The base model, without weights.
    """
    stage, model, training = inputs.stage, inputs.model, inputs.training
    longest, precision = inputs.rows["train"].longest, Precision.read(vars(model))
    sizes, size = architecture(base.config), item_bytes(precision.dtype, base.config.dtype)
    weights = weight_bytes(base, size, precision.bits)
    policy = inputs.start.config if inputs.start else lora_config(model)
    merging = [] if stage in ("sft", "dpo") else [policy]
    samples_merged = inputs.reward is None or inputs.reward.merge_for_sampling
    dtypes = EXACT if stage not in ONLINE else ROUNDED if samples_merged else ()
    merged = [merged_bytes(base, merging, precision, dtypes)]
    scorer = inputs.reward_adapter
    if inputs.reward_classifier is not None:
        weights += classifier_bytes(inputs.reward_classifier, inputs.reward_precision)
    elif scorer is not None and inputs.reward_shares_base:
        merged.append(merged_bytes(base, [scorer.config], precision))
    elif scorer is not None:
        other, other_precision = meta_model(scorer.base), inputs.reward_precision
        item = item_bytes(other_precision.dtype, other.config.dtype)
        weights += weight_bytes(other, item, other_precision.bits)
        merged.append(merged_bytes(other, [scorer.config], other_precision))
    rows = training.train_batch_size * (2 if stage in ("reward", "dpo") else 1)
    completion = getattr(training, "max_completion_length", 0)
    tokens = rows * (completion if stage in ONLINE else longest)
    logits = {"reward": 0, "ppo": logits_bytes(sizes, tokens)}
    sampled = {
        "ppo": lambda: min(training.generation_batch_size, training.rollout_size),
        "grpo": lambda: training.generation_batch_size // training.world_size,
    }.get(stage, lambda: 0)()
    return Memory(
        weights=weights,
        adapters=parameters.adapters * FLOAT32,
        gradients=parameters.trainable * FLOAT32,
        optimizer=optimizer_bytes(parameters.trainable, training.optim, FLOAT32),
        activations=activation_bytes(
            sizes, rows * longest, size, training.activation_checkpointing
        ),
        logits=logits.get(stage, tile_bytes(sizes, tokens)),
        kv_cache=kv_cache_bytes(sizes, sampled * longest, size),
        merged=max(merged),
    )


def classifier_bytes(classifier: Classifier, precision: Precision) -> int:
    """Return the bytes of a whole classifier's weights in a precision."""
    model = classifier.meta_model()
    return weight_bytes(model, item_bytes(precision.dtype, model.config.dtype), precision.bits)


def evaluation_memory(
    base: PreTrainedModel,
    parameters: Parameters,
    adapters: Adapters,
    arguments: EvaluationArguments,
    longest: int,
) -> Memory:
    """Estimate the memory of an evaluation, whose base is opened as in training.

    The exact KL needs the logits of the policy and of the reference at once, of `TOKENS_AT_ONCE`
    tokens. A judge of another base opens that too.

    Args:
        base: The base model, without weights.
    """
    precision = adapters.precision
    sizes, size = architecture(base.config), item_bytes(precision.dtype, base.config.dtype)
    weights = weight_bytes(base, size, precision.bits)
    merged = [merged_bytes(base, [a.config for a in adapters.by_name().values()], precision)]
    for judge in adapters.judges.values():
        other, other_precision = base, precision
        if not judge.base.is_same(adapters.proxy.base):
            other, other_precision = meta_model(judge.base), judge.precision or precision
            item = item_bytes(other_precision.dtype, other.config.dtype)
            weights += weight_bytes(other, item, other_precision.bits)
        merged.append(merged_bytes(other, [judge.config], other_precision))
    tokens = min(TOKENS_AT_ONCE, arguments.batch_size * arguments.max_completion_length)
    return Memory(
        weights=weights,
        adapters=parameters.adapters * FLOAT32,
        logits=2 * logits_bytes(sizes, tokens),
        kv_cache=kv_cache_bytes(sizes, arguments.batch_size * longest, size),
        merged=max(merged),
        phases=(SAMPLING, MEASURING),
    )


def merged_bytes(
    base: PreTrainedModel,
    adapters: Sequence[PeftConfig],
    precision: Precision,
    dtypes: Sequence[torch.dtype] = EXACT,
) -> int:
    """Return the bytes of the weights that the largest adapter is merged into, one at a time.

    It is 0 where none is merged: see `models/merging.py`.

    Args:
        base: The base model, without weights.
        dtypes: Dtypes of the weights that are merged.
    """
    if precision.bits is not None:
        return 0
    dtype = getattr(torch, precision.dtype, base.config.dtype)  # `auto` is the model's
    sizes = [0]
    for adapter in adapters:
        with_adapter = with_lora(base, adapter, str(base.name_or_path)).to(dtype)
        layers = mergeable_layers(with_adapter, with_adapter.active_adapter, dtypes)
        weights = [layer.get_base_layer().weight for layer in layers]
        sizes.append(sum(weight.numel() * weight.element_size() for weight in weights))
    return max(sizes)


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


def tile_bytes(sizes: Architecture, tokens: int) -> int:
    """Return the bytes of the largest tile of logits that TRL's fused head has at once."""
    tile = min(tokens, TILE_TOKENS) * min(sizes.vocab_size, TILE_WIDTH)
    return tile * FLOAT32 * LOGITS_COPIES


def kv_cache_bytes(sizes: Architecture, tokens: int, item_size: int) -> int:
    """Return the bytes of the keys and values of `tokens` tokens in all layers."""
    return tokens * sizes.num_layers * 2 * sizes.key_size * item_size


def item_bytes(dtype: str | None, model_dtype: Any) -> int:
    """Return the bytes of one number of a recipe's `dtype`; None and `auto` mean the model's."""
    torch_dtype = model_dtype if dtype in (None, "auto") else getattr(torch, dtype)
    return int((torch_dtype or torch.float32).itemsize)
