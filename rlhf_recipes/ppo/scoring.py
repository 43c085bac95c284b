"""What an episode is worth: reward functions mixed by weight, on the reference's scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.objective import Total
from rlhf_recipes.sampling import Prompt

RewardFunc = Callable[..., Sequence[float]]
"""A reward function as TRL's GRPOTrainer takes it.

It is called with `prompts`, `completions` and the dataset's other columns, all of one length, and
gives one float each. Completions are texts, or for conversations messages of one assistant turn.
"""


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
        self.reward_funcs = list(reward_funcs)
        self.names = [getattr(f, "__name__", type(f).__name__) for f in reward_funcs]
        if len(set(self.names)) < len(self.names):
            raise RecipeError(
                f"Two reward functions have one name: {', '.join(self.names)}. Each is logged "
                "under its own: rename one (the reward model is `reward_model`)."
            )
        if not reward_funcs:
            raise RecipeError(
                "There is nothing to be rewarded for. Give `reward_model_path`, `reward_funcs`, or "
                "both."
            )
        weights = config.reward_weights or [1.0] * len(self.reward_funcs)
        if len(weights) != len(self.reward_funcs):
            raise RecipeError(
                f"`reward_weights` has {len(weights)} weights, and there are "
                f"{len(self.reward_funcs)} reward functions: {', '.join(self.names)}. "
                "Give one weight for each, in that order."
            )
        self.weights = weights
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
        scores = {}
        for name, function in zip(self.names, self.reward_funcs, strict=True):
            values = list(function(prompts=list(prompts), completions=completions, **columns))
            scores[name] = _checked(name, values, texts)
        return scores

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


def _checked(name: str, values: Sequence[Any], texts: Sequence[str]) -> list[float]:
    if len(values) != len(texts):
        raise RecipeError(
            f"The reward function `{name}` returned {len(values)} values for {len(texts)} "
            "completions. It must return one float for each, in their order."
        )
    for value, text in zip(values, texts, strict=True):
        if value is None or isinstance(value, str) or not isfinite(value):
            raise RecipeError(
                f"The reward function `{name}` returned {value!r} for the completion "
                f"{text[:80]!r}. It must return a finite number: one that is none would spread to "
                "every weight of the policy."
            )
    return [float(value) for value in values]
