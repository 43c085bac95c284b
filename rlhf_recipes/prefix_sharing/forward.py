"""Compute the common prefix of a batch's rows once, inside a model of TRL's trainers.

`share_prefixes` changes how such a model computes, not what it computes. The prefix that chosen and
rejected completions share, or the completions of one group, is recognized from the token ids alone;
`packing.py` lays out the rows.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rlhf_recipes.models.dropout import has_dropout
from rlhf_recipes.prefix_sharing.packing import Packer, Packing
from rlhf_recipes.prefix_sharing.shared_layers import (
    num_frozen_shared_layers,
    only_layers,
    upper_layer_input,
)

SHAREABLE = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
"""Supported architectures: position-wise outside attention, covered by the equivalence tests."""

PACKED_ATTENTION = "shared_prefixes"
"""Name of `packed_attention` in transformers' registry; without a packing it is `sdpa`."""

REPLACEABLE = ("eager", "sdpa", "flex_attention")
"""Attention implementations that `packed_attention` may replace."""

log = logging.getLogger(__name__)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention of packed tokens, one call per `packing.Block`.

    Takes `query` of shape (1, heads, N, d), `key` and `value` of shape (1, key heads, N, d), and
    returns (1, N, heads, d), like every attention function in transformers.

    Heads that share a key head are not given copies of it. The packed sequence is a batch of one,
    so the key heads become the batch, each with its query heads, for which a key is a view.
    """
    if packing is None:
        sdpa = AttentionInterface()["sdpa"]
        return sdpa(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    key_heads = key.shape[1]
    queries = query[0].unflatten(0, (key_heads, -1)).split(packing.block_lengths, 2)
    keys, values = (x.transpose(0, 1).split(packing.segment_lengths, 2) for x in (key, value))
    outputs = []
    for block_query, block in zip(queries, packing.blocks, strict=True):
        block_key, block_value = (
            _concatenated([x[i] for i in block.segments]).expand(-1, block_query.shape[1], -1, -1)
            for x in (keys, values)
        )
        output = nn.functional.scaled_dot_product_attention(
            block_query,
            block_key,
            block_value,
            attn_mask=block.attention_mask,
            is_causal=block.attention_mask is None,
            dropout_p=kwargs.get("dropout", 0.0),
            scale=kwargs.get("scaling"),
        )
        outputs.append(output)
    return torch.cat(outputs, 2).flatten(0, 1)[None].transpose(1, 2), None


def _concatenated(segments: list[Tensor]) -> Tensor:
    """Concatenate keys or values of segments along their tokens; a single one is not copied."""
    return segments[0] if len(segments) == 1 else torch.cat(segments, 2)


def packed_attention_mask(
    batch_size: int, q_length: int, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
) -> Tensor | None:
    """Make the mask of `sdpa`, without asking the device if a decoding step needs none.

    The sampler passes no mask where no row is padded, and asking would make the host wait.
    """
    if q_length == 1 and attention_mask is not None:
        kwargs["allow_is_causal_skip"] = False
    mask = AttentionMaskInterface()["sdpa"]
    return mask(batch_size, q_length, *args, attention_mask=attention_mask, **kwargs)  # type: ignore[no-any-return]


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, packed_attention_mask)


def can_share_prefixes(base: PreTrainedModel) -> bool:
    """Return whether a model can compute packed rows; if not, log a warning with the reason."""
    reason = _obstacle(base)
    if reason is not None:
        log.warning("Prompts are not shared between rows: %s.", reason)
    return reason is None


def _obstacle(base: PreTrainedModel) -> str | None:
    """Return why a model cannot compute packed rows; None if it can."""
    config = base.config
    attention = str(config._attn_implementation)
    if config.model_type not in SHAREABLE:
        return f"`{config.model_type}` is not among {', '.join(SHAREABLE)}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention has a sliding window"
    if attention not in (*REPLACEABLE, PACKED_ATTENTION):
        return f"`attn_implementation` is {attention}, which would be replaced by sdpa"
    if config.output_hidden_states or config.output_attentions:
        return "its configuration asks for the output of every layer"
    if has_dropout(base):
        return "it has dropout, which would be the same for all rows: set it to 0"
    return None


def use_packed_attention(base: PreTrainedModel) -> None:
    """Replace a model's attention by `packed_attention`; passes without a packing keep sdpa."""
    base.set_attn_implementation(PACKED_ATTENTION)


def share_prefixes(model: nn.Module) -> bool:
    """Make a model compute each prefix that rows of a batch share once, in passes without a cache.

    Losses, metrics and gradients stay the same up to rounding. With TRL's fused head, only labeled
    tokens reach the head, on every device. A model that cannot share prefixes is left unchanged and
    a warning gives the reason. Returns whether the model shares prefixes.

    Args:
        model: A causal model or sequence classifier, with or without LoRA, for example a trainer's
            `model` once the trainer is made.

    >>> from rlhf_recipes import share_prefixes
    >>> trainer = DPOTrainer(base, args=dpo_args, train_dataset=pairs, peft_config=LoraConfig())
    >>> share_prefixes(trainer.model)
    True
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(base.base_model.forward, _SharingForward):
        return True
    if not can_share_prefixes(base):
        return False
    use_packed_attention(base)
    base.base_model.forward = _SharingForward(base)
    if base.get_output_embeddings() is not None:
        base.forward = _LabeledForward(base.forward)
    return True


def packed_pass(backbone: Callable[..., Any], packing: Packing, **inputs: Any) -> Any:
    """Run a backbone on packed tokens; its last hidden states have shape (1, N, width)."""
    return backbone(
        **inputs,
        position_ids=packing.position_ids,
        # A mask of four dimensions reaches `packed_attention` as it is, which ignores it.
        attention_mask=packing.position_ids[None, None].bool(),
        packing=packing,
        use_cache=False,
    )


class _SharingForward:
    """A backbone's `forward` that packs its inputs and unpacks its outputs.

    Layers below the lowest adapter give the same output for every role, so a second pass on the
    same batch, which is the reference model's, starts above them.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        self.forward: Callable[..., Any] = base.base_model.forward
        self.packer = Packer()
        self.last: _SharedLayers | None = None

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labeled: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the backbone's output.

        Args:
            labeled: True for the K tokens whose last hidden states are wanted, shape (rows,
                length); they are then returned with shape (1, K, width).
        """
        packing = None
        if input_ids is not None and attention_mask is not None and _is_plain(kwargs):
            packing = self.packer(input_ids, attention_mask)
        if packing is None or self.last is None or self.last.packing is not packing:
            self.last = None
        if packing is None:
            output = self.forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            if labeled is not None:
                output.last_hidden_state = output.last_hidden_state[labeled][None]
            return output
        assert input_ids is not None
        output = self.decode(packing, packing.pack(input_ids))
        hidden = output.last_hidden_state
        output.last_hidden_state = (
            packing.unpack(hidden)
            if labeled is None
            else hidden[:, packing.packed_positions[labeled]]
        )
        return output

    def decode(self, packing: Packing, ids: Tensor) -> Any:
        """Run the backbone on packed tokens, above the shared layers if it ran those already."""
        number = num_frozen_shared_layers(self.base)
        if number == 0:
            return packed_pass(self.forward, packing, input_ids=ids)
        if self.last is None or self.last.number != number:
            with torch.no_grad(), only_layers(self.base, slice(0, number)):
                output = packed_pass(self.forward, packing, input_ids=ids)
            self.last = _SharedLayers(packing, number, output.last_hidden_state)
        with only_layers(self.base, slice(number, None)):
            hidden_states = upper_layer_input(self.base, self.last.hidden_states)
            return packed_pass(self.forward, packing, inputs_embeds=hidden_states)


class _SharedLayers(NamedTuple):
    """Output of the first `number` layers on the batch of a packing."""

    packing: Packing
    number: int
    hidden_states: Tensor


def _is_plain(kwargs: dict[str, Any]) -> bool:
    """Return whether a pass wants last hidden states of whole rows, and nothing else."""
    wanted = {name for name, value in kwargs.items() if value is not None and value is not False}
    return kwargs.get("use_cache") is False and wanted <= {"return_dict"}


class _LabeledForward:
    """A causal model's `forward` that gives TRL's fused head the labeled tokens only."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        functools.update_wrapper(self, forward)

    def __call__(
        self, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Return the model's output; per-token outputs are 0 where there is no label."""
        if not fused_lm_head or labels is None:
            return self.forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        predicted = labels[:, 1:] != -100  # every token but the first can be predicted
        output = self.forward(
            *args,
            fused_lm_head=True,
            shift_labels=labels[:, 1:][predicted][None],
            labeled=nn.functional.pad(predicted, (0, 1)),
            **kwargs,
        )
        for name, tensor in list(output.items()):
            if tensor.dim() == 2:  # per token; the losses are single numbers
                output[name] = tensor.new_zeros(predicted.shape).masked_scatter(predicted, tensor)
        return output
