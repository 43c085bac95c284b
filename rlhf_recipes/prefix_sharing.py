"""A prompt is computed once: rows of a batch that begin alike share that beginning in a model.

`share_prefixes` changes how a model of TRL's trainers computes, not what. Chosen and rejected
answers, and the completions of a group, are found to begin alike from their ids; see `packing.py`.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rlhf_recipes.packing import Packing, packing_of
from rlhf_recipes.trunk import frozen_depth, only_layers

SHAREABLE = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
"""Architectures whose layers look at single tokens, attention apart, and that tests compare."""

SHARED_ATTENTION = "shared_prefixes"
"""Name of the attention below in transformers' registry; without a packing it is `sdpa`."""

REPLACEABLE = ("eager", "sdpa", "flex_attention", SHARED_ATTENTION)

log = logging.getLogger(__name__)


def shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens: prefixes see themselves, a rest sees its prefix and itself.

    As every attention function of transformers: `query`, `key` and `value` of shape
    (1, heads, N, d) give (1, N, heads, d).
    """
    attend = functools.partial(AttentionInterface()["sdpa"], module, **kwargs)
    if packing is None:
        return attend(query, key, value, attention_mask)  # type: ignore[no-any-return]
    (query, rest_query), (key, rest_key), (value, rest_value) = (
        packing.blocks(packed) for packed in (query, key, value)
    )
    prefixes, _ = attend(query, key, value, None)
    rests, _ = attend(
        rest_query,
        torch.cat([key.index_select(0, packing.group), rest_key], 2),
        torch.cat([value.index_select(0, packing.group), rest_value], 2),
        packing.visible,
    )
    return packing.joined(prefixes, rests), None


AttentionInterface.register(SHARED_ATTENTION, shared_attention)
AttentionMaskInterface.register(SHARED_ATTENTION, AttentionMaskInterface()["sdpa"])


def obstacle(base: PreTrainedModel) -> str | None:
    """Why a model's passes cannot share prefixes; None where they can."""
    config = base.config
    attention = str(config._attn_implementation)
    if config.model_type not in SHAREABLE:
        return f"`{config.model_type}` is not among {', '.join(SHAREABLE)}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention has a sliding window"
    if attention not in REPLACEABLE:
        return f"`attn_implementation` is {attention}, which would be replaced by sdpa"
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in base.modules()):
        return "it has dropout, which would be the same for all rows: set `disable_dropout: true`"
    return None


def share_prefixes(model: nn.Module) -> bool:
    """Compute what rows of a batch have in common once, in every pass of the model without a cache.

    Losses, metrics and gradients stay what they are, up to rounding. With TRL's fused head only
    labelled tokens reach it, on every device. A model that cannot share is left as it is, with a
    line in the log; returns whether it shares.

    Args:
        model: A causal model or sequence classifier, LoRA around it or not, for example a trainer's
            `model` once the trainer is made.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    reason = obstacle(base)
    if reason is not None:
        log.warning("Prompts are not shared between rows: %s.", reason)
        return False
    base.set_attn_implementation(SHARED_ATTENTION)
    base.base_model.forward = _SharingForward(base)
    if base.get_output_embeddings() is not None:
        base.forward = _labelled_only(base.forward)
    return True


def packed_pass(backbone: Callable[..., Any], packing: Packing, **inputs: Any) -> Any:
    """What a backbone gives for packed tokens; its last hidden states have shape (1, N, width)."""
    return backbone(
        **inputs,
        position_ids=packing.position_ids,
        # A mask of four dimensions is handed to attention as it is, which here has its own.
        attention_mask=packing.visible,
        packing=packing,
        use_cache=False,
    )


class _SharingForward:
    """A backbone's `forward` that packs what it is given and unpacks what comes out.

    The layers below every adapter say the same of a batch whatever role asks: the pass that follows
    on the same batch, which is the reference's, begins above them.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        self.forward: Callable[..., Any] = base.base_model.forward
        self.trunk_depth = frozen_depth(base)
        self.batch: Tensor | None = None  # the last one, with its packing and trunk
        self.packing: Packing | None = None
        self.trunk: Tensor | None = None

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labelled: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the backbone's, of the `labelled` tokens alone where they are given: (1, K, width)."""
        packing = None
        if input_ids is not None and attention_mask is not None and _plain(kwargs):
            packing = self.packed(input_ids, attention_mask)
        if packing is None:
            output = self.forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            if labelled is not None:
                output.last_hidden_state = output.last_hidden_state[labelled][None]
            return output
        assert input_ids is not None
        output = self.decode(packing, input_ids)
        hidden = output.last_hidden_state
        output.last_hidden_state = (
            packing.unpack(hidden) if labelled is None else hidden[:, packing.places[labelled]]
        )
        return output

    def packed(self, input_ids: Tensor, attention_mask: Tensor) -> Packing | None:
        if input_ids is not self.batch:
            self.batch, self.trunk = input_ids, None
            self.packing = packing_of(input_ids, attention_mask)
        return self.packing

    def decode(self, packing: Packing, input_ids: Tensor) -> Any:
        ids = packing.pack(input_ids)
        if self.trunk_depth == 0:
            return packed_pass(self.forward, packing, input_ids=ids)
        if self.trunk is None:
            with torch.no_grad(), only_layers(self.base, slice(0, self.trunk_depth)):
                self.trunk = packed_pass(self.forward, packing, input_ids=ids).last_hidden_state
        with only_layers(self.base, slice(self.trunk_depth, None)):
            return packed_pass(self.forward, packing, inputs_embeds=self.trunk)


def _plain(kwargs: dict[str, Any]) -> bool:
    """Whether a pass wants last hidden states of whole rows, and nothing else."""
    wanted = {name for name, value in kwargs.items() if value is not None and value is not False}
    return kwargs.get("use_cache") is False and wanted <= {"return_dict"}


def _labelled_only(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A causal model's `forward` whose fused head, TRL's, is given labelled tokens alone."""

    @functools.wraps(forward)
    def labelled_forward(
        *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head or labels is None:
            return forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        mask = labels[:, 1:] != -100  # whether a token, from the second on, is to be predicted
        output = forward(
            *args,
            fused_lm_head=True,
            shift_labels=labels[:, 1:][mask][None],
            labelled=nn.functional.pad(mask, (0, 1)),
            **kwargs,
        )
        for name, found in list(output.items()):
            if found.dim() == 2:  # per token; the losses are single numbers
                output[name] = found.new_zeros(mask.shape).masked_scatter(mask, found)
        return output

    return labelled_forward
