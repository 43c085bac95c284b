"""What would make a PPO run fail or go wrong silently: refused before it starts where it can be."""

from pathlib import Path
from typing import NoReturn

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.vocabulary import check_padding
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.preferences.truncation import check_context, prompt_rows
from rlhf_recipes.sharding import check_unsharded
from rlhf_recipes.steps import check_held_out, micro_batches


def check_run(
    args: PPOConfig,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
) -> None:
    """Raise RecipeError for what cannot work, before anything is changed or sampled.

    A recipe was checked by the table of `rlhf_recipes.checks`, in the same words and before any
    weights; this is for a trainer that is made in Python.
    """
    check_unsharded(args)
    check_padding(tokenizer)
    micro_batches("ppo", len(train_dataset), args)
    splits = {"train": train_dataset}
    if eval_dataset is not None:
        check_held_out(len(eval_dataset), args.world_size)
        splits["evaluation"] = eval_dataset
    rows = {
        split: prompt_rows(prompts["prompt"], tokenizer, args.max_completion_length)
        for split, prompts in splits.items()
    }
    check_context(base.config, rows)


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
