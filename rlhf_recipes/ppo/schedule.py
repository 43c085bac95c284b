"""Which prompts a rollout has, and which of its episodes a step learns from.

Both follow from the seed and a number alone, so that a resumed run goes on as an uninterrupted one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_recipes.ppo.config import PPOConfig


class Place(NamedTuple):
    """Where a micro-step stands: its rollout, and epoch, minibatch and part within that."""

    rollout: int
    epoch: int
    minibatch: int
    part: int

    @property
    def first(self) -> bool:
        """Whether a rollout begins here."""
        return self[1:] == (0, 0, 0)


class Schedule:
    """The order in which one process visits prompts and episodes."""

    def __init__(self, args: PPOConfig, num_prompts: int) -> None:
        self.args = args
        self.num_prompts = num_prompts
        # transformers gives `world_size` no type.
        self.processes = int(args.world_size)
        self.together = args.prompts_per_rollout * self.processes

    @property
    def micro_steps_per_epoch(self) -> int:
        """Micro-steps on a process in which every prompt is sampled on about once."""
        return self.num_prompts // self.together * self.args.micro_steps_per_rollout

    def steps(self, episodes: int) -> int:
        """Optimiser steps of as many whole rollouts as give that many episodes on all processes."""
        rollouts = -(-episodes // (self.args.rollout_size * self.processes))
        return rollouts * self.args.steps_per_rollout

    def rollouts(self, steps: int) -> int:
        """Rollouts that were begun in the first so many optimiser steps."""
        return -(-steps // self.args.steps_per_rollout)

    def place(self, micro_step: int) -> Place:
        """What micro-step `micro_step` of the run is."""
        args = self.args
        rollout, rest = divmod(micro_step, args.micro_steps_per_rollout)
        rest, part = divmod(rest, args.gradient_accumulation_steps)
        return Place(rollout, *divmod(rest, args.num_mini_batches), part)

    def seed(self, rollout: int) -> int:
        """The seed of a rollout: of its order, and with the process's number of its sampling."""
        return self.args.seed + 100_003 * rollout

    def prompt_rows(self, rollout: int) -> list[int]:
        """The rows of the training data that a rollout has on this process.

        An epoch is a shuffle drawn from the seed and the epoch; prompts that do not fill a whole
        rollout at its end are left for another epoch's shuffle.
        """
        size = self.args.prompts_per_rollout
        epoch, position = divmod(rollout, self.num_prompts // self.together)
        generator = torch.Generator().manual_seed(self.args.seed + epoch)
        start = position * self.together + self.args.process_index * size
        shuffled = torch.randperm(self.num_prompts, generator=generator)
        return shuffled[start : start + size].tolist()

    def minibatch_rows(self, place: Place) -> Tensor:
        """The episodes of a minibatch; each epoch has the prompts in an order of its own.

        A prompt's completions stay side by side: what they have in common is computed once.
        """
        generator = torch.Generator().manual_seed(self.seed(place.rollout) + place.epoch)
        prompts = torch.randperm(self.args.prompts_per_rollout, generator=generator)
        each = self.args.num_generations
        order = prompts[:, None] * each + torch.arange(each)
        return order.view(self.args.num_mini_batches, -1)[place.minibatch]
