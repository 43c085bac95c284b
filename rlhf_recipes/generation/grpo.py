"""Sample GRPO's completions with this project's sampler, through its trainer's `rollout_func`."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from rlhf_recipes.generation.sampling import sample
from rlhf_recipes.models.merging import ROUNDED, merged
from rlhf_recipes.prompts import Prompt, prompt_ids
from rlhf_recipes.sharding import shards_weights

OWN_DISTRIBUTION = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "use_vllm": False,
    "use_transformers_continuous_batching": False,
    "generation_kwargs": None,
    "chat_template_kwargs": None,
    "cache_implementation": None,
}
"""Settings of GRPOConfig under which completions come from the model's own distribution."""

log = logging.getLogger(__name__)


def rollout_func_for(
    args: GRPOConfig, *, merge: bool = True
) -> Callable[..., dict[str, Any]] | None:
    """Return the `rollout_func` for a GRPOTrainer with these arguments.

    Returns None and logs a warning where they ask for another distribution than the model's own, or
    for another engine. TRL then samples.

    Args:
        merge: Whether the adapter is merged into the weights for sampling.
    """
    for name, value in OWN_DISTRIBUTION.items():
        if (getattr(args, name, value) or None) != (value or None):
            log.warning("TRL's own sampler is used: `%s` is %s.", name, getattr(args, name))
            return None
    if args.max_completion_length is None:
        log.warning("TRL's own sampler is used: `max_completion_length` is None.")
        return None
    if shards_weights(args):
        log.warning("TRL's own sampler is used: the weights are sharded over processes.")
        return None
    return partial(sampled_completions, merge=merge)


def sampled_completions(
    prompts: list[Prompt], trainer: GRPOTrainer, *, merge: bool = True
) -> dict[str, Any]:
    """Sample one completion per prompt, in the form that GRPOTrainer takes.

    Identical prompts are prefilled once, the adapter is merged into the weights if `merge`, and the
    seed is drawn from torch's generator, whose state a checkpoint holds. `logprobs` is None, so the
    trainer computes those it needs.
    """
    args: Any = trainer.args
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer: Any = trainer.processing_class
    lora, was_training = isinstance(model, PeftModel), model.training
    model.eval()  # in training mode a base with gradient checkpointing drops its cache
    try:
        with merged(model, model.active_adapter, ROUNDED) if lora and merge else nullcontext():
            rows = sample(
                model.get_base_model() if lora else model,
                tokenizer,
                prompts,
                max_completion_length=args.max_completion_length,
                temperature=args.temperature,
                batch_size=len(prompts),
                seed=int(torch.randint(2**31, ())),
            )
    finally:
        model.train(was_training)
    return {
        "prompt_ids": [prompt_ids(tokenizer, prompt) for prompt in prompts],
        "completion_ids": [completion.ids for (completion,) in rows],
        "logprobs": None,
    }
