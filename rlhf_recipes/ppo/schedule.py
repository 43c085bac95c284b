"""The order of a run: the prompts of each rollout, and the episodes of each micro-step.

Both are functions of the seed and of a number alone, so a resumed run continues exactly as an
uninterrupted one would have.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_recipes.ppo.config import PPOConfig


class Position(NamedTuple):
    """Position of a micro-step (one forward and backward pass) in the run.

    Epoch, minibatch and micro-batch are counted from 0 within the rollout, the epoch and the
    minibatch.
    """

    rollout: int
    epoch: int
    minibatch: int
    micro_batch: int

    @property
    def starts_rollout(self) -> bool:
        """Whether this is the first micro-step on its rollout."""
        return self[1:] == (0, 0, 0)


class Schedule:
    """The order in which one process visits prompts and episodes.

    Args:
        args: PPO's configuration.
        num_prompts: Rows of the training dataset.
    """

    def __init__(self, args: PPOConfig, num_prompts: int) -> None:
        self.args = args
        self.num_prompts = num_prompts
        # transformers gives `world_size` no type.
        self.num_processes = int(args.world_size)
        self.global_prompts_per_rollout = args.prompts_per_rollout * self.num_processes

    @property
    def rollouts_per_epoch(self) -> int:
        """Rollouts in a pass over the prompts; those that do not fill a rollout are left out."""
        return self.num_prompts // self.global_prompts_per_rollout

    @property
    def micro_steps_per_epoch(self) -> int:
        """Micro-steps of a process in one pass over the prompts."""
        return self.rollouts_per_epoch * self.args.micro_steps_per_rollout

    def num_steps(self, total_episodes: int) -> int:
        """Compute the optimizer steps of a run, whose episodes are rounded up to whole rollouts."""
        rollouts = -(-total_episodes // (self.args.rollout_size * self.num_processes))
        return rollouts * self.args.steps_per_rollout

    def num_rollouts(self, steps: int) -> int:
        """Compute the number of rollouts started within the first `steps` optimizer steps."""
        return -(-steps // self.args.steps_per_rollout)

    def position(self, micro_step: int) -> Position:
        """Compute the position of the micro-step with that number, counted from 0."""
        args = self.args
        rollout, rest = divmod(micro_step, args.micro_steps_per_rollout)
        rest, micro_batch = divmod(rest, args.gradient_accumulation_steps)
        return Position(rollout, *divmod(rest, args.num_mini_batches), micro_batch)

    def rollout_seed(self, rollout: int) -> int:
        """Derive the seed of a rollout, for its sampling and for the order of its episodes."""
        return self.args.seed + 100_003 * rollout

    def prompt_rows(self, rollout: int) -> list[int]:
        """Return the rows of the training dataset that this process samples on in a rollout.

        The dataset is shuffled anew in each pass, by the seed and the number of the pass.
        """
        epoch, position = divmod(rollout, self.rollouts_per_epoch)
        generator = torch.Generator().manual_seed(self.args.seed + epoch)
        size = self.args.prompts_per_rollout
        start = position * self.global_prompts_per_rollout + self.args.process_index * size
        shuffled = torch.randperm(self.num_prompts, generator=generator)
        return shuffled[start : start + size].tolist()

    def minibatch_rows(self, position: Position) -> Tensor:
        """Return the rows of the rollout's episodes in a minibatch, shape (episodes,).

        Each epoch shuffles the prompts, and the completions of a prompt stay adjacent: what they
        have in common is computed once.
        """
        seed = self.rollout_seed(position.rollout) + position.epoch
        generator = torch.Generator().manual_seed(seed)
        prompts = torch.randperm(self.args.prompts_per_rollout, generator=generator)
        num_generations = self.args.num_generations
        order = prompts[:, None] * num_generations + torch.arange(num_generations)
        return order.view(self.args.num_mini_batches, -1)[position.minibatch]
