"""The order in which PPO reads its prompts."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class RolloutSampler(Sampler[int]):
    """Prompt indices in the order PPO reads them: each rollout's, once for every micro-step.

    A rollout is `rollout_size` consecutive indices of a shuffled epoch; prompts that do not fill
    one are left for another epoch's shuffle. Every process then draws the same number of batches.
    """

    def __init__(self, num_prompts: int, rollout_size: int, repeats: int, seed: int) -> None:
        self.num_rollouts = num_prompts // rollout_size
        self.num_prompts = num_prompts
        self.rollout_size = rollout_size
        self.repeats = repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle; the Trainer calls this before each epoch and when it resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_prompts, generator=generator).tolist()
        for rollout in range(self.num_rollouts):
            start = rollout * self.rollout_size
            for _ in range(self.repeats):
                yield from order[start : start + self.rollout_size]

    def __len__(self) -> int:
        return self.num_rollouts * self.rollout_size * self.repeats
