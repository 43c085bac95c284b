"""Collect a rollout: sample completions, score them, and work out rewards and advantages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.logprobs import kl_estimate
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.objective import (
    Total,
    generalized_advantages,
    scale_to_unit_variance,
    token_rewards,
    whiten,
)
from rlhf_recipes.ppo.roles import POLICY, VALUE
from rlhf_recipes.rewards import RewardModel
from rlhf_recipes.roles import Roles
from rlhf_recipes.sampling import Completion, Prompt, pad, prompt_ids, sample


@dataclass
class Episodes:
    """What one optimisation pass needs of some episodes; row i is episode i.

    Prompts are padded on the left and completions on the right, so that the completions are the
    last columns of `input_ids`. Shapes: `input_ids`, `mask` (batch, prompt + completion), `trunk`
    the same with a width, the rest (batch, completion).
    """

    input_ids: Tensor
    mask: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    trunk: Tensor | None = None

    def rows(self, index: Tensor) -> "Episodes":
        """The episodes of those rows, without the columns that only padding stands in."""
        mask, completion_mask = self.mask[index], self.completion_mask[index]
        left = int((~mask).all(0).long().cumprod(0).sum())
        longest = int(completion_mask.sum(-1).max())
        end = mask.shape[1] - (completion_mask.shape[1] - longest)
        columns = {}
        for name in (f.name for f in fields(self)):
            whole = name in ("input_ids", "mask", "trunk")
            column = getattr(self, name)
            if column is not None:
                columns[name] = column[index][:, left:end] if whole else column[index][:, :longest]
        return Episodes(**columns)

    def inputs(self) -> tuple[Tensor, Tensor, int]:
        """What every role is called with: ids, mask, and the completions' length."""
        return self.input_ids, self.mask, self.completion_mask.shape[1]


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
        return cls(mean, variance**0.5 if variance > 0 else 1.0)


@dataclass
class Rollout:
    """Episodes ready to learn from, their texts, and what is logged about them."""

    episodes: Episodes
    metrics: dict[str, float]
    table: dict[str, list[Any]]


def rollout_metrics(table: Mapping[str, Tensor], kl_coef: float) -> dict[str, float]:
    """What is logged of a rollout, in the names of TRL's PPO; sums over an episode are averaged."""
    mean = {name: float(column.float().mean()) for name, column in table.items()}
    return {
        "objective/kl": mean["kl"],
        "objective/entropy": mean["entropy"],
        "objective/non_score_reward": -kl_coef * mean["kl"],
        "objective/rlhf_reward": mean["effective_score"] - kl_coef * mean["kl"],
        "objective/scores": mean["score"],
        "policy/entropy_avg": mean["entropy"] / mean["length"],
        "val/num_eos_tokens": float(table["finished"].sum()),
        "completions/mean_length": mean["length"],
    }


class RolloutWorker:
    """Turns prompts into rollouts with the roles of one base model."""

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        reward_model: RewardModel,
        config: PPOConfig,
        reference: str | None,
        total: Total,
    ) -> None:
        self.roles = roles
        self.tokenizer = tokenizer
        self.reward_model = reward_model
        self.config = config
        self.reference = reference
        self.total = total
        self.scale: RewardScale | None = None if config.normalize_rewards else RewardScale()

    @torch.no_grad()
    def collect(self, prompts: Sequence[Prompt], seed: int) -> Rollout:
        """One completion of each prompt, and everything PPO's update needs to know of it."""
        # In training mode a base with gradient checkpointing drops the cache it samples with.
        self.roles.eval()
        config = self.config
        completions = self.sample(prompts, seed)
        input_ids, mask, completion_mask = self.batch(prompts, completions)
        device = input_ids.device
        raw = torch.tensor(self.reward_model(prompts, [c.text for c in completions]), device=device)
        finished = torch.tensor([c.finished for c in completions], device=device)
        # Before the passes: the first scores rescale the head that predicts them.
        scores = self.effective_scores(raw, finished)
        old_logps, ref_logps, entropy, values, trunk = self.passes(
            input_ids, mask, completion_mask.shape[1]
        )
        kl = kl_estimate(old_logps, ref_logps, config.kl_estimator)
        rewards = token_rewards(scores, kl, completion_mask, config.kl_coef)
        if config.whiten_rewards:
            rewards = scale_to_unit_variance(rewards, completion_mask, self.total)
        advantages, returns = generalized_advantages(
            rewards, values, completion_mask, config.gamma, config.lam
        )
        episodes = Episodes(
            input_ids=input_ids,
            mask=mask,
            completion_mask=completion_mask,
            old_logps=old_logps,
            old_values=values,
            advantages=whiten(advantages, completion_mask, self.total),
            returns=returns,
            trunk=trunk,
        )
        table = {
            "score": raw,
            "effective_score": scores,
            "kl": torch.where(completion_mask, kl, 0.0).sum(-1),
            "entropy": torch.where(completion_mask, entropy, 0.0).sum(-1),
            "length": completion_mask.sum(-1),
            "finished": finished,
        }
        texts: dict[str, list[Any]] = {
            "prompt": list(prompts),
            "completion": [c.text for c in completions],
        }
        columns = {name: column.tolist() for name, column in table.items()}
        return Rollout(episodes, rollout_metrics(table, config.kl_coef), {**texts, **columns})

    def sample(self, prompts: Sequence[Prompt], seed: int) -> list[Completion]:
        """One completion of each prompt from the policy, its adapter merged for the while."""
        with self.roles.merged(POLICY) as sampler:
            rows = sample(
                sampler,
                self.tokenizer,
                prompts,
                max_completion_length=self.config.max_completion_length,
                temperature=self.config.temperature,
                batch_size=self.config.generation_batch_size,
                seed=seed,
            )
        return [row[0] for row in rows]

    def batch(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, their mask, and the completion mask. Masks come from lengths alone."""
        pad_token_id = self.tokenizer.pad_token_id
        encoded = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        left, left_mask = pad(encoded, pad_token_id, left=True)
        right, completion_mask = pad([c.ids for c in completions], pad_token_id, left=False)
        device = self.roles.base.device
        return (
            torch.cat([left, right], 1).to(device),
            torch.cat([left_mask, completion_mask], 1).to(device),
            completion_mask.to(device),
        )

    def passes(
        self, input_ids: Tensor, mask: Tensor, length: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Log-probabilities of policy and reference, the policy's entropy, values, and the trunk.

        In micro-batches of the size that training uses: logits of a whole rollout at once are
        the largest thing a run could hold.
        """
        parts = []
        for rows in torch.arange(len(input_ids)).split(self.config.per_device_train_batch_size):
            trunk = self.roles.trunk(input_ids[rows], mask[rows])
            inputs = input_ids[rows], mask[rows], length, self.config.temperature, trunk
            policy = self.roles(POLICY, *inputs)
            reference = self.roles(self.reference, *inputs)
            values = self.roles(VALUE, *inputs)
            parts.append((policy.logps, reference.logps, policy.entropy, values, trunk))
        *columns, trunks = zip(*parts, strict=True)
        old_logps, ref_logps, entropy, values = (torch.cat(column) for column in columns)
        whole_trunk = None if trunks[0] is None else torch.cat(trunks)
        return old_logps, ref_logps, entropy, values, whole_trunk

    def effective_scores(self, raw: Tensor, finished: Tensor) -> Tensor:
        """Scores as PPO maximises them: normalised, clipped, less the penalty for no end.

        The scale is measured once, on the first rollout, which the reference itself sampled.
        """
        if self.scale is None:
            self.scale = RewardScale.of(raw, self.total)
            self.rescale_value_head(self.scale)
        scores = (raw - self.scale.mean) / self.scale.deviation
        if self.config.reward_clip is not None:
            scores = scores.clamp(-self.config.reward_clip, self.config.reward_clip)
        if self.config.missing_eos_penalty is not None:
            scores = scores - self.config.missing_eos_penalty * (~finished).float()
        return scores

    def rescale_value_head(self, scale: RewardScale) -> None:
        """Make the value head predict normalised scores: it started as the reward model's head."""
        head = self.roles.head(VALUE)
        head.weight.div_(scale.deviation)
        head.bias.sub_(scale.mean).div_(scale.deviation)
