"""What an episode is worth: reward functions mixed by weight, on the reference's scale."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.objective import Total
from rlhf_recipes.prompts import Prompt
from rlhf_recipes.reward_functions import RewardFunc, check_functions, checked, function_name


@dataclass
class RewardScale:
    """The shift and scale that give the reference's scores mean 0 and deviation 1."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, scores: Tensor, total: Total) -> "RewardScale":
        """Measured on the scores of all processes; a deviation of 0 is taken as 1."""
        count = float(total(torch.tensor(float(len(scores)), device=scores.device)))
        mean = float(total(scores.sum())) / count
        variance = float(total(((scores - mean) ** 2).sum())) / max(count - 1, 1)
        # A constant score that float32 cannot hold has a deviation of its rounding errors.
        deviation = variance**0.5
        return cls(mean, deviation if deviation > 1e-6 * max(1.0, abs(mean)) else 1.0)


class Scorer:
    """Scores of completions as PPO maximises them, and as they were before."""

    def __init__(self, reward_funcs: Sequence[RewardFunc], config: PPOConfig, total: Total) -> None:
        self.reward_funcs = [checked(function) for function in reward_funcs]
        self.names = [function_name(function) for function in reward_funcs]
        check_functions(self.names, config.reward_weights)
        self.weights = config.reward_weights or [1.0] * len(self.names)
        self.config = config
        self.total = total
        self.scale: RewardScale | None = None

    def raw(
        self, prompts: Sequence[Prompt], texts: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, list[float]]:
        """What each reward function gives, by its name."""
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        return {
            name: function(prompts=list(prompts), completions=completions, **columns)
            for name, function in zip(self.names, self.reward_funcs, strict=True)
        }

    def mixed(self, scores: Mapping[str, Sequence[float]]) -> Tensor:
        """The weighted sum of what the reward functions gave, shape (batch,)."""
        columns = torch.tensor(list(scores.values()), dtype=torch.float32)
        return torch.tensor(self.weights) @ columns

    def measure_scale(self, mixed: Tensor) -> RewardScale:
        """Set the scale from the reference's scores, or to none where none is wanted."""
        normalize = self.config.normalize_rewards
        self.scale = RewardScale.of(mixed, self.total) if normalize else RewardScale()
        return self.scale

    def effective(self, mixed: Tensor, finished: Tensor) -> Tensor:
        """Scores normalised, clipped, less the penalty for completions that were cut off."""
        assert self.scale is not None
        scores = (mixed - self.scale.mean) / self.scale.deviation
        if self.config.reward_clip is not None:
            scores = scores.clamp(-self.config.reward_clip, self.config.reward_clip)
        if self.config.missing_eos_penalty is not None:
            scores = scores - self.config.missing_eos_penalty * (~finished).float()
        return scores
