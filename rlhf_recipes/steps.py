"""Count the micro-batches, optimizer steps and completions of a training stage.

transformers counts steps in `Trainer.set_initial_training_values`, a method of a Trainer that has
its model and its dataloader. A plan is made before any weights are loaded, so the counts are
computed here from the arguments and the number of rows. The tests compare them with that method,
with accelerate's sharding of batches, and with the completions that GRPO and PPO sample.
"""

import math
from typing import Any

from rlhf_recipes.errors import RecipeError


def micro_batches(stage: str, rows: int, training: Any) -> int:
    """Return the forward-backward passes of one process in one epoch.

    For pairs: ceil(rows / (device batch size x processes)). For prompts: the whole generation
    batches (GRPO) or rollouts (PPO) that the rows fill, times the passes that use each of them.

    Raises RecipeError if the rows do not fill one batch.
    """
    rows_per_batch: int
    passes: int
    if stage == "grpo":
        rows_per_batch = training.generation_batch_size // training.num_generations
        passes = training.steps_per_generation * training.num_iterations
    elif stage == "ppo":
        rows_per_batch = training.prompts_per_rollout * training.world_size
        passes = training.micro_steps_per_rollout
    else:
        rows_per_batch, passes = training.train_batch_size * training.world_size, 1
        if not training.dataloader_drop_last:
            return math.ceil(rows / rows_per_batch)
    if rows < rows_per_batch:
        raise RecipeError(
            f"There are {rows} training rows, and one batch over all processes takes "
            f"{rows_per_batch}, so there is nothing to train on. Lower "
            "`per_device_train_batch_size` or `gradient_accumulation_steps`"
            + (", or `num_mini_batches`" if stage == "ppo" else "")
            + ", or give more rows."
        )
    return rows // rows_per_batch * passes


def check_held_out(prompts: int, processes: int) -> None:
    """Raise RecipeError if a process would have no prompt to evaluate on."""
    if prompts < processes:
        raise RecipeError(
            f"There are {prompts} prompts to evaluate on and {processes} processes, and every "
            "process needs one. Raise `num_eval_prompts`."
        )


def optimizer_steps(stage: str, epoch: int, training: Any) -> int:
    """Return the optimizer steps of a run whose epochs have `epoch` micro-batches per process.

    The last step of an epoch may accumulate fewer micro-batches than the others.
    """
    if stage == "ppo" and training.total_episodes is not None:
        rollouts = math.ceil(
            training.total_episodes / (training.rollout_size * training.world_size)
        )
        return int(rollouts * training.steps_per_rollout)
    if training.max_steps > 0:
        return int(training.max_steps)
    epochs: float = training.num_train_epochs
    return math.ceil(epochs * _steps_per_epoch(epoch, training))


def completion_count(stage: str, epoch: int, steps: int, training: Any) -> int:
    """Return the completions that all processes sample during training; 0 for pairs."""
    epochs, remainder = divmod(steps, _steps_per_epoch(epoch, training))
    passes = epochs * epoch + remainder * training.gradient_accumulation_steps
    if stage == "grpo":
        passes_per_generation = training.steps_per_generation * training.num_iterations
        return int(math.ceil(passes / passes_per_generation) * training.generation_batch_size)
    if stage == "ppo":
        rollouts = math.ceil(passes / training.micro_steps_per_rollout)
        return int(rollouts * training.rollout_size * training.world_size)
    return 0


def _steps_per_epoch(epoch: int, training: Any) -> int:
    accumulation: int = training.gradient_accumulation_steps
    return math.ceil(epoch / accumulation)
