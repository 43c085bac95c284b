"""A prompt is computed once: rows of a batch that begin alike share that beginning in a model.

`share_prefixes` changes how a model of TRL's trainers computes, not what. Chosen and rejected
answers, and the completions of a group, are found to begin alike from their ids; see `packing.py`.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from rlhf_recipes.models.dropout import has_dropout
from rlhf_recipes.prefix_sharing.packing import Packing, packing_of
from rlhf_recipes.prefix_sharing.shared_layers import frozen_depth, only_layers, trunk_input

SHAREABLE = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
"""Architectures whose layers look at single tokens, attention apart, and that tests compare."""

SHARED_ATTENTION = "shared_prefixes"
"""Name of the attention below in transformers' registry; without a packing it is `sdpa`."""

REPLACEABLE = ("eager", "sdpa", "flex_attention")

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
    """Attention of packed tokens, block by block: see `packing.Block`.

    As every attention function of transformers: `query`, `key` and `value` of shape
    (1, heads, N, d) give (1, N, heads, d).
    """
    attend = functools.partial(AttentionInterface()["sdpa"], module, **kwargs)
    if packing is None:
        return attend(query, key, value, attention_mask)  # type: ignore[no-any-return]
    keys, values = key.split(packing.pieces, 2), value.split(packing.pieces, 2)
    queries = query.split([block.tokens for block in packing.blocks], 2)
    found = []
    for own, block in zip(queries, packing.blocks, strict=True):
        seen = (torch.cat([pieces[n] for n in block.seen], 2) for pieces in (keys, values))
        found.append(attend(own, *seen, block.visible)[0])
    return torch.cat(found, 1), None


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
    if config.output_hidden_states or config.output_attentions:
        return "its configuration asks for the output of every layer"
    if has_dropout(base):
        return "it has dropout, which would be the same for all rows: set it to 0"
    return None


def takes_packed(base: PreTrainedModel) -> bool:
    """Give a model the attention that packed passes need; False, and why in the log, if it cannot.

    Its other passes stay what they were.
    """
    reason = obstacle(base)
    if reason is not None:
        log.warning("Prompts are not shared between rows: %s.", reason)
        return False
    base.set_attn_implementation(SHARED_ATTENTION)
    return True


def share_prefixes(model: nn.Module) -> bool:
    """Compute what rows of a batch have in common once, in every pass of the model without a cache.

    Losses, metrics and gradients stay what they are, up to rounding. With TRL's fused head only
    labelled tokens reach it, on every device. A model that cannot share is left as it is, with a
    line in the log; returns whether it shares.

    Args:
        model: A causal model or sequence classifier, LoRA around it or not, for example a trainer's
            `model` once the trainer is made.

    >>> from rlhf_recipes import share_prefixes
    >>> trainer = DPOTrainer(base, args=dpo_args, train_dataset=pairs, peft_config=LoraConfig())
    >>> share_prefixes(trainer.model)
    True
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(base.base_model.forward, _SharingForward):
        return True
    if not takes_packed(base):
        return False
    base.base_model.forward = _SharingForward(base)
    if base.get_output_embeddings() is not None:
        base.forward = _LabelledForward(base.forward)
    return True


def packed_pass(backbone: Callable[..., Any], packing: Packing, **inputs: Any) -> Any:
    """What a backbone gives for packed tokens; its last hidden states have shape (1, N, width)."""
    return backbone(
        **inputs,
        position_ids=packing.position_ids,
        # A mask of four dimensions is handed to attention as it is, which here has its own.
        attention_mask=packing.position_ids[None, None].bool(),
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
        self.last: _Batch | None = None

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
        else:
            self.last = None
        if packing is None:
            output = self.forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            if labelled is not None:
                output.last_hidden_state = output.last_hidden_state[labelled][None]
            return output
        output = self.decode(packing)
        hidden = output.last_hidden_state
        output.last_hidden_state = (
            packing.unpack(hidden) if labelled is None else hidden[:, packing.places[labelled]]
        )
        return output

    def packed(self, input_ids: Tensor, attention_mask: Tensor) -> Packing | None:
        """The packing of a batch; the last one's if it is the same batch."""
        last = self.last
        if (
            last is None
            or not torch.equal(last.input_ids, input_ids)
            or not torch.equal(last.attention_mask, attention_mask)
        ):
            packing = packing_of(input_ids, attention_mask)
            self.last = _Batch(input_ids.clone(), attention_mask.clone(), packing)
        assert self.last is not None
        return self.last.packing

    def decode(self, packing: Packing) -> Any:
        """What the backbone gives for the packed tokens of the last batch."""
        assert self.last is not None
        ids, depth = packing.pack(self.last.input_ids), frozen_depth(self.base)
        if depth == 0:
            return packed_pass(self.forward, packing, input_ids=ids)
        if self.last.trunk is None or self.last.depth != depth:
            with torch.no_grad(), only_layers(self.base, slice(0, depth)):
                output = packed_pass(self.forward, packing, input_ids=ids)
            self.last.trunk, self.last.depth = output.last_hidden_state, depth
        with only_layers(self.base, slice(depth, None)):
            trunk = trunk_input(self.base, self.last.trunk)
            return packed_pass(self.forward, packing, inputs_embeds=trunk)


@dataclass
class _Batch:
    """A batch as it was given, and what has been computed of it."""

    input_ids: Tensor
    attention_mask: Tensor
    packing: Packing | None
    trunk: Tensor | None = None
    depth: int = 0


def _plain(kwargs: dict[str, Any]) -> bool:
    """Whether a pass wants last hidden states of whole rows, and nothing else."""
    wanted = {name for name, value in kwargs.items() if value is not None and value is not False}
    return kwargs.get("use_cache") is False and wanted <= {"return_dict"}


class _LabelledForward:
    """A causal model's `forward` whose fused head, TRL's, is given labelled tokens alone."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        functools.update_wrapper(self, forward)

    def __call__(
        self, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As the model's; what the fused head gives per token is 0 where there is no label."""
        if not fused_lm_head or labels is None:
            return self.forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        mask = labels[:, 1:] != -100  # whether a token, from the second on, is to be predicted
        output = self.forward(
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
