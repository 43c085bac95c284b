"""What would make a PPO run fail or go wrong silently: refused before it starts where it can be."""

from pathlib import Path
from typing import NoReturn

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.preferences import prompt_text
from rlhf_recipes.sampling import prompt_ids
from rlhf_recipes.sharding import shards_weights


def check_run(
    args: PPOConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
) -> None:
    """Raise RecipeError for what cannot work, before anything is changed or sampled."""
    _refuse_sharding(args)
    _refuse_tokenizer(tokenizer)
    _refuse_few(train_dataset, args)
    if eval_dataset is not None and len(eval_dataset) < args.world_size:
        raise RecipeError(
            f"There are {len(eval_dataset)} prompts to evaluate on and {args.world_size} "
            "processes, each of which needs one. Raise `num_eval_prompts`."
        )
    for prompts in (train_dataset, eval_dataset):
        if prompts is not None:
            _refuse_long(prompts, tokenizer, base, args)


def _refuse_sharding(args: PPOConfig) -> None:
    """Under DeepSpeed and FSDP, steps and weights are not this trainer's.

    DeepSpeed steps the optimiser at every backward pass, and a PPO step has two; FSDP replaces the
    parameters that the roles switch, and sampling would wait for a process that has finished.
    """
    if shards_weights(args):
        raise RecipeError(
            "PPO does not run under DeepSpeed or FSDP. Use accelerate_configs/single.yaml or "
            "multi_gpu.yaml; a base too large for one GPU fits with `load_in_4bit: true`."
        )


def _refuse_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    for token in ("pad_token", "eos_token"):
        if getattr(tokenizer, token) is None:
            raise RecipeError(
                f"The tokenizer of `{tokenizer.name_or_path}` has no {token}. Set "
                f"`tokenizer.{token}`; without a padding token of its own a model takes its "
                "end-of-sequence token."
            )


def _refuse_few(prompts: Dataset, args: PPOConfig) -> None:
    needed = args.prompts_per_rollout * args.world_size
    if len(prompts) < needed:
        raise RecipeError(
            f"There are {len(prompts)} training prompts, and one rollout takes {needed} "
            f"({args.prompts_per_rollout} on each of {args.world_size} processes). Lower "
            "`per_device_train_batch_size`, `gradient_accumulation_steps` or "
            "`num_mini_batches`, or give more prompts."
        )


def _refuse_long(
    prompts: Dataset, tokenizer: PreTrainedTokenizerBase, base: PreTrainedModel, args: PPOConfig
) -> None:
    context = getattr(base.config, "max_position_embeddings", None)
    if context is None:
        return
    room = context - args.max_completion_length
    for row, prompt in enumerate(prompts["prompt"]):
        length = len(prompt_ids(tokenizer, prompt))
        if length > room:
            raise RecipeError(
                f"Prompt {row} has {length} tokens, and there is room for {room}: the base takes "
                f"{context}, of which `max_completion_length` keeps {args.max_completion_length}. "
                "Lower that, or leave long rows out with `max_length` of prepare_data.py. It "
                f"begins {prompt_text(prompt)[:80]!r}."
            )


def stop_at(loss: Tensor, role: str, episodes: Episodes, args: PPOConfig, step: int) -> NoReturn:
    """Save the batch whose loss is not finite, and raise RecipeError."""
    file = Path(str(args.output_dir)) / f"not_finite_{args.process_index}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vars(episodes), file)
    raise RecipeError(
        f"The {role} loss is {loss.item()} at step {step}, and no weight was changed by it. Its "
        f"batch is saved in {file}; the newest checkpoint is from before. The usual cause is a "
        "`learning_rate` too high."
    )
