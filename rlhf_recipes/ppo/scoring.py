"""Scores of completions: reward functions combined, normalized and clipped.

A *score* belongs to a completion; the per-token *rewards* with the KL penalty are computed from it
in `objective.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.objective import AllReduce
from rlhf_recipes.prompts import Prompt
from rlhf_recipes.reward_functions import RewardFunc, check_functions, checked, function_name


@dataclass
class RewardScale:
    """Mean and std by which scores are normalized: score' = (score - mean) / std."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def measure(cls, scores: Tensor, all_reduce: AllReduce) -> "RewardScale":
        """Measure mean and unbiased std of scores, shape (batch,), over all processes.

        Constant scores have the std 1, so that normalizing only shifts them.
        """
        count = float(all_reduce(torch.tensor(float(len(scores)), device=scores.device)))
        mean = float(all_reduce(scores.sum())) / count
        variance = float(all_reduce(((scores - mean) ** 2).sum())) / max(count - 1, 1)
        # A constant that float32 cannot represent has a std of its rounding errors.
        std = variance**0.5
        return cls(mean, std if std > 1e-6 * max(1.0, abs(mean)) else 1.0)


class EpisodeScorer:
    """Combine, normalize and clip the scores of reward functions.

    Attributes:
        weights: Weight of each reward function in the combined score.
        scale: The scale of the reference model's scores, measured on the first rollout; None
            before it.
    """

    def __init__(
        self, reward_funcs: Sequence[RewardFunc], config: PPOConfig, all_reduce: AllReduce
    ) -> None:
        self.reward_funcs = [checked(function) for function in reward_funcs]
        self.names = [function_name(function) for function in reward_funcs]
        check_functions(self.names, config.reward_weights)
        self.weights = config.reward_weights or [1.0] * len(self.names)
        self.config = config
        self.all_reduce = all_reduce
        self.scale: RewardScale | None = None

    def function_scores(
        self, prompts: Sequence[Prompt], texts: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, list[float]]:
        """Call every reward function, and return its scores under its name.

        Args:
            prompts: One prompt per completion.
            texts: The completions.
            columns: Other columns of the dataset, one value per completion.
        """
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        return {
            name: function(prompts=list(prompts), completions=completions, **columns)
            for name, function in zip(self.names, self.reward_funcs, strict=True)
        }

    def combine(self, scores: Mapping[str, Sequence[float]]) -> Tensor:
        """Compute the weighted sum Σ_f weight_f · score_f of each completion, shape (batch,)."""
        columns = torch.tensor(list(scores.values()), dtype=torch.float32)
        return torch.tensor(self.weights) @ columns

    def measure_scale(self, combined: Tensor) -> RewardScale:
        """Set the scale from the reference model's combined scores, and return it.

        Without `normalize_rewards` it is mean 0 and std 1, which changes nothing.
        """
        normalize = self.config.normalize_rewards
        self.scale = RewardScale.measure(combined, self.all_reduce) if normalize else RewardScale()
        return self.scale

    def effective_scores(self, combined: Tensor, finished: Tensor) -> Tensor:
        """Normalize and clip combined scores, and subtract the penalty for a missing EOS.

        score' = clip((score - mean) / std, -reward_clip, reward_clip)
                 - missing_eos_penalty · 1[not finished]

        Args:
            combined: Shape (batch,).
            finished: True where the completion ended by itself, shape (batch,).
        """
        assert self.scale is not None
        scores = (combined - self.scale.mean) / self.scale.std
        if self.config.reward_clip is not None:
            scores = scores.clamp(-self.config.reward_clip, self.config.reward_clip)
        if self.config.missing_eos_penalty is not None:
            scores = scores - self.config.missing_eos_penalty * (~finished).float()
        return scores
