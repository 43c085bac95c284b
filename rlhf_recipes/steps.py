"""How many batches, steps and completions a training stage comes to, as its trainer counts them."""

import math
from typing import Any

from rlhf_recipes.errors import RecipeError


def micro_batches(stage: str, rows: int, training: Any) -> int:
    """Forward-backward passes of one process in one epoch.

    Pairs: ceil(rows / (device batch x processes)). Prompts are used in whole generation batches
    of GRPO, whole rollouts of PPO; each serves a fixed number of passes.
    """
    needed: int
    passes: int
    if stage == "grpo":
        needed = training.generation_batch_size // training.num_generations
        passes = training.steps_per_generation * training.num_iterations
    elif stage == "ppo":
        needed = training.prompts_per_rollout * training.world_size
        passes = training.micro_steps_per_rollout
    else:
        needed, passes = training.train_batch_size * training.world_size, 1
        if not training.dataloader_drop_last:
            return math.ceil(rows / needed)
    if rows < needed:
        raise RecipeError(
            f"There are {rows} training rows, and one batch of them takes {needed} over all "
            "processes, so there is nothing to train on. Lower `per_device_train_batch_size` or "
            "`gradient_accumulation_steps`"
            + (", or `num_mini_batches`" if stage == "ppo" else "")
            + ", or give more rows."
        )
    return rows // needed * passes


def check_held_out(prompts: int, processes: int) -> None:
    """Raise RecipeError where a process would have no prompt to evaluate on."""
    if prompts < processes:
        raise RecipeError(
            f"There are {prompts} prompts to evaluate on and {processes} processes, each of which "
            "needs one. Raise `num_eval_prompts`."
        )


def optimiser_steps(stage: str, epoch: int, training: Any) -> int:
    """Optimiser steps of a run whose epochs have so many passes, as transformers' Trainer counts.

    The last step of an epoch may have fewer passes than the others.
    """
    if stage == "ppo" and training.total_episodes is not None:
        rollouts = math.ceil(
            training.total_episodes / (training.rollout_size * training.world_size)
        )
        return int(rollouts * training.steps_per_rollout)
    if training.max_steps > 0:
        return int(training.max_steps)
    epochs: float = training.num_train_epochs
    return math.ceil(epochs * _steps_in_epoch(epoch, training))


def completion_count(stage: str, epoch: int, steps: int, training: Any) -> int:
    """Completions sampled while training, over all processes."""
    epochs, rest = divmod(steps, _steps_in_epoch(epoch, training))
    passes = epochs * epoch + rest * training.gradient_accumulation_steps
    if stage == "grpo":
        served = training.steps_per_generation * training.num_iterations
        return int(math.ceil(passes / served) * training.generation_batch_size)
    if stage == "ppo":
        rollouts = math.ceil(passes / training.micro_steps_per_rollout)
        return int(rollouts * training.rollout_size * training.world_size)
    return 0


def _steps_in_epoch(epoch: int, training: Any) -> int:
    accumulation: int = training.gradient_accumulation_steps
    return math.ceil(epoch / accumulation)
