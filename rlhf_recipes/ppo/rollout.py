"""Collect a rollout: sample completions, score them, and work out rewards and advantages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.generation.sampling import Completion, sample
from rlhf_recipes.logprobs import TokenLogps, kl_estimate
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes, Rollout, bounds
from rlhf_recipes.ppo.objective import (
    Total,
    adapted_kl_coef,
    generalized_advantages,
    scale_to_unit_variance,
    token_rewards,
    whiten,
)
from rlhf_recipes.ppo.roles import POLICY, VALUE
from rlhf_recipes.ppo.scoring import RewardScale, Scorer
from rlhf_recipes.prompts import Prompt, pad, prompt_ids
from rlhf_recipes.roles import Roles


class Passes(NamedTuple):
    """What the roles say of sampled completions, shape (batch, completion) but for the trunk."""

    logps: Tensor
    ref_logps: Tensor
    entropy: Tensor
    values: Tensor
    trunk: Tensor | None


class RolloutWorker:
    """Turns prompts into rollouts with the roles of one base model.

    Attributes:
        kl_coef: Weight of the KL penalty now; it moves where the config has a `kl_target`.
        scorer: The reward functions, with the scale measured on the first rollout.
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        scorer: Scorer,
        config: PPOConfig,
        reference: str | None,
        total: Total,
        *,
        value_is_reward: bool,
    ) -> None:
        self.roles = roles
        self.tokenizer = tokenizer
        self.scorer = scorer
        self.config = config
        self.reference = reference
        self.total = total
        self.value_is_reward = value_is_reward
        self.kl_coef = config.kl_coef

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Rollout:
        """`num_generations` completions of each prompt, and everything PPO needs to know of them.

        Args:
            columns: The prompts' other columns of the dataset, which reward functions may read.
        """
        # In training mode a base with gradient checkpointing drops the cache it samples with.
        self.roles.eval()
        config, each = self.config, self.config.num_generations
        completions = self.sample(prompts, seed)
        prompts = [prompt for prompt in prompts for _ in range(each)]
        columns = {n: [v for v in c for _ in range(each)] for n, c in (columns or {}).items()}
        input_ids, mask, completion_mask = self.batch(prompts, completions)
        device = input_ids.device
        texts = [c.text for c in completions]
        finished = torch.tensor([c.finished for c in completions], device=device)
        parts = self.scorer.raw(prompts, texts, columns)
        raw = self.scorer.mixed(parts).to(device)
        if self.scorer.scale is None:  # before the passes: the value head predicts scaled scores
            self.rescale_value_head(self.scorer.measure_scale(raw), raw, parts)
        scores = self.scorer.effective(raw, finished)
        known = self.behaviour(completions) if self.sampler_is_exact else None
        passes = self.passes(input_ids, mask, completion_mask, known)
        kl = kl_estimate(passes.logps, passes.ref_logps, config.kl_estimator)
        rewards = token_rewards(scores, kl, completion_mask, self.kl_coef)
        episodes = self.episodes(input_ids, mask, completion_mask, rewards, passes)
        numbers = {
            "score": raw,
            "effective_score": scores,
            "kl": kl.sum(-1),
            "entropy": passes.entropy.sum(-1),
            "length": completion_mask.sum(-1),
            "finished": finished,
        }
        table: dict[str, list[Any]] = {"prompt": list(prompts), "completion": texts}
        table |= {name: column.tolist() for name, column in numbers.items()}
        return Rollout(episodes, table | {f"rewards/{n}": list(c) for n, c in parts.items()})

    def episodes(
        self,
        input_ids: Tensor,
        mask: Tensor,
        completion_mask: Tensor,
        rewards: Tensor,
        passes: Passes,
    ) -> Episodes:
        """Advantages and returns of per-token rewards, with all that an update needs."""
        config = self.config
        if config.whiten_rewards:
            rewards = scale_to_unit_variance(rewards, completion_mask, self.total)
        advantages, returns = generalized_advantages(
            rewards, passes.values, completion_mask, config.gamma, config.lam
        )
        return Episodes(
            input_ids=input_ids,
            mask=mask,
            completion_mask=completion_mask,
            old_logps=passes.logps,
            old_values=passes.values,
            advantages=whiten(advantages, completion_mask, self.total),
            returns=returns,
            trunk=passes.trunk,
        )

    def sample(self, prompts: Sequence[Prompt], seed: int) -> list[Completion]:
        """Completions of each prompt in turn from the policy, its adapter merged for the while."""
        with self.roles.merged(POLICY) as sampler:
            rows = sample(
                sampler,
                self.tokenizer,
                prompts,
                num_completions=self.config.num_generations,
                max_completion_length=self.config.max_completion_length,
                temperature=self.config.temperature,
                batch_size=self.config.generation_batch_size,
                seed=seed,
            )
        return [completion for row in rows for completion in row]

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

    @property
    def sampler_is_exact(self) -> bool:
        """Whether the sampler's log-probabilities are a training pass's, but for float32 rounding.

        In lower precision a cached step and a whole pass differ by far more: the ratio of the first
        update would be noise.
        """
        base, config = self.roles.base, self.config
        quantized = getattr(base, "is_quantized", False)
        rounded = config.mixed_precision != "no" or config.tf32 or quantized
        return base.dtype == torch.float32 and not rounded

    def behaviour(self, completions: Sequence[Completion]) -> TokenLogps:
        """What the sampler knows of its completions, shape (batch, completion), 0 for padding."""
        columns = ([c.logps for c in completions], [c.entropy for c in completions])
        padded = (
            pad_sequence([torch.tensor(row) for row in column], batch_first=True)
            for column in columns
        )
        return TokenLogps(*(tensor.to(self.roles.base.device) for tensor in padded))

    def passes(
        self,
        input_ids: Tensor,
        mask: Tensor,
        completion_mask: Tensor,
        known: TokenLogps | None = None,
    ) -> Passes:
        """One forward pass of policy, reference and value each, zero where there is no token.

        The policy's is left out where its log-probabilities are `known` from the sampler.

        In micro-batches of the size that training uses: logits of a whole rollout at once are the
        largest thing a run could hold. A prompt's completions stand side by side and share it.
        """
        found: dict[str, Tensor] = {}
        for rows, left, end, length in self.micro_batches(mask, completion_mask):
            ids, part = input_ids[rows, left:end], mask[rows, left:end]
            trunk = self.roles.trunk(ids, part)
            inputs = ids, part, length, self.config.temperature, trunk
            micro = {
                "ref_logps": self.roles(self.reference, *inputs).logps,
                "values": self.roles(VALUE, *inputs),
            }
            if known is None:
                micro |= self.roles(POLICY, *inputs)._asdict()
            for name, column in micro.items():
                whole = found.setdefault(name, column.new_zeros(completion_mask.shape))
                whole[rows, :length] = torch.where(completion_mask[rows, :length], column, 0.0)
            if trunk is not None:
                whole = found.setdefault("trunk", trunk.new_zeros(*mask.shape, trunk.shape[-1]))
                whole[rows, left:end] = trunk
        if known is not None:
            found |= known._asdict()
        return Passes(trunk=found.pop("trunk", None), **found)

    def trunk(self, input_ids: Tensor, mask: Tensor, completion_mask: Tensor) -> Tensor | None:
        """The trunk that `passes` gives for the same rows, bit for bit."""
        whole = None
        for rows, left, end, _ in self.micro_batches(mask, completion_mask):
            trunk = self.roles.trunk(input_ids[rows, left:end], mask[rows, left:end])
            if trunk is not None:
                if whole is None:
                    whole = trunk.new_zeros(*mask.shape, trunk.shape[-1])
                whole[rows, left:end] = trunk
        return whole

    def micro_batches(
        self, mask: Tensor, completion_mask: Tensor
    ) -> Iterator[tuple[Tensor, int, int, int]]:
        """Rows in turn, with the columns and the completion length they need."""
        every = torch.arange(len(mask), device=mask.device)
        for rows in every.split(self.config.per_device_train_batch_size):
            yield rows, *bounds(mask[rows], completion_mask[rows])

    def adapt_kl_coef(self, kl: float, episodes: int) -> None:
        """Steer the penalty's weight towards the config's `kl_target`, if it has one."""
        if self.config.kl_target is not None:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, kl, self.config.kl_target, episodes, self.config.kl_horizon
            )

    def rescale_value_head(
        self, scale: RewardScale, mixed: Tensor, parts: Mapping[str, Sequence[float]]
    ) -> None:
        """Make the value head, which started as the reward model's, predict effective scores.

        V' = (w V + m - mean) / deviation, where w is the reward model's weight and m what the
        other reward functions add on average.
        """
        if self.value_is_reward:
            weight = self.scorer.weights[0]
            own = torch.tensor(next(iter(parts.values())), device=mixed.device)
            means = (RewardScale.of(scores, self.total).mean for scores in (mixed, own))
            others = next(means) - weight * next(means)
            head = self.roles.head(VALUE)
            head.weight.mul_(weight / scale.deviation)
            head.bias.mul_(weight).add_(others - scale.mean).div_(scale.deviation)
