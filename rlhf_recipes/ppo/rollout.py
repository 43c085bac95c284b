"""Collect rollouts: sample completions, score them, and compute rewards and advantages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.generation.sampling import Completion, sample
from rlhf_recipes.logprobs import TokenLogps, kl_estimate
from rlhf_recipes.models.merging import ROUNDED
from rlhf_recipes.ppo.attaching import POLICY, VALUE
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes, crop_bounds
from rlhf_recipes.ppo.objective import (
    AllReduce,
    adapted_kl_coef,
    generalized_advantages,
    scale_to_unit_variance,
    token_rewards,
    whiten,
)
from rlhf_recipes.ppo.scoring import EpisodeScorer, RewardScale
from rlhf_recipes.ppo.tables import Table
from rlhf_recipes.prompts import Prompt, pad, prompt_ids
from rlhf_recipes.roles import Roles


class Rollout(NamedTuple):
    """Episodes to learn from, and the table of what was sampled."""

    episodes: Episodes
    table: Table


class RolloutOutputs(NamedTuple):
    """Outputs of the roles for sampled completions, 0 at padding.

    Attributes:
        logps: Log-probabilities under the policy in nats, shape (batch, completion), which is
            that of the following three as well.
        ref_logps: Log-probabilities under the reference model.
        entropy: Entropy of the policy's next-token distributions in nats.
        values: Predictions of the value model.
        shared_hidden_states: As in `Episodes`.
    """

    logps: Tensor
    ref_logps: Tensor
    entropy: Tensor
    values: Tensor
    shared_hidden_states: Tensor | None


class RolloutWorker:
    """Turn prompts into rollouts with the roles of one base model.

    Args:
        roles: The base with all of PPO's roles attached.
        tokenizer: The policy's, with a padding token.
        scorer: The reward functions.
        config: PPO's configuration.
        reference: Role of the reference model; None is the base with all adapters off.
        all_reduce: Sums a tensor over all processes.
        value_from_reward_model: Whether the value model started as the first reward function.
        merge_for_sampling: Whether the policy's adapter is merged into the weights for sampling.

    Attributes:
        kl_coef: Current weight of the KL penalty; it changes where the config has a `kl_target`.
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        scorer: EpisodeScorer,
        config: PPOConfig,
        reference: str | None,
        all_reduce: AllReduce,
        *,
        value_from_reward_model: bool,
        merge_for_sampling: bool = True,
    ) -> None:
        self.roles = roles
        self.tokenizer = tokenizer
        self.scorer = scorer
        self.config = config
        self.reference = reference
        self.all_reduce = all_reduce
        self.value_from_reward_model = value_from_reward_model
        self.merge_for_sampling = merge_for_sampling
        self.kl_coef = config.kl_coef

    @torch.no_grad()
    def collect(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Rollout:
        """Sample `num_generations` completions per prompt, and compute what an update needs.

        The first call also sets the scale of the scores; see `EpisodeScorer.measure_scale`.

        Args:
            prompts: The prompts of this process.
            seed: Seed of the sampler.
            columns: The dataset's other columns, one value per prompt, for the reward functions.
        """
        # In training mode a base with gradient checkpointing drops the cache it samples with.
        self.roles.eval()
        repeats = range(self.config.num_generations)
        completions = self.sample(prompts, seed)
        prompts = [prompt for prompt in prompts for _ in repeats]
        columns = {
            name: [value for value in column for _ in repeats]
            for name, column in (columns or {}).items()
        }
        input_ids, attention_mask, completion_mask = self.collate(prompts, completions)
        device = input_ids.device
        texts = [completion.text for completion in completions]
        finished = torch.tensor([completion.finished for completion in completions], device=device)
        by_function = self.scorer.function_scores(prompts, texts, columns)
        combined = self.scorer.combine(by_function).to(device)
        if self.scorer.scale is None:  # before the value model runs: it predicts scaled scores
            self.rescale_value_head(self.scorer.measure_scale(combined), combined, by_function)
        scores = self.scorer.effective_scores(combined, finished)
        sampled = self.sampled_logps(completions) if self.sampler_is_exact else None
        outputs = self.run_roles(input_ids, attention_mask, completion_mask, sampled)
        kl = kl_estimate(outputs.logps, outputs.ref_logps, self.config.kl_estimator)
        rewards = token_rewards(scores, kl, completion_mask, self.kl_coef)
        episodes = self.build_episodes(input_ids, attention_mask, completion_mask, rewards, outputs)
        numbers = {
            "score": combined,
            "effective_score": scores,
            "kl": kl.sum(-1),
            "entropy": outputs.entropy.sum(-1),
            "length": completion_mask.sum(-1),
            "finished": finished,
        }
        table: Table = {"prompt": list(prompts), "completion": texts}
        table |= {name: column.tolist() for name, column in numbers.items()}
        table |= {f"rewards/{name}": list(column) for name, column in by_function.items()}
        return Rollout(episodes, table)

    def build_episodes(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        rewards: Tensor,
        outputs: RolloutOutputs,
    ) -> Episodes:
        """Compute advantages and returns from per-token rewards, shape (batch, completion)."""
        config = self.config
        if config.whiten_rewards:
            rewards = scale_to_unit_variance(rewards, completion_mask, self.all_reduce)
        advantages, returns = generalized_advantages(
            rewards, outputs.values, completion_mask, config.gamma, config.lam
        )
        return Episodes(
            input_ids=input_ids,
            attention_mask=attention_mask,
            completion_mask=completion_mask,
            old_logps=outputs.logps,
            old_values=outputs.values,
            advantages=whiten(advantages, completion_mask, self.all_reduce),
            returns=returns,
            shared_hidden_states=outputs.shared_hidden_states,
        )

    def sample(self, prompts: Sequence[Prompt], seed: int) -> list[Completion]:
        """Sample completions from the policy, those of one prompt adjacent.

        The adapter is merged into the base's weights meanwhile, if it may be: a token then costs
        what it costs the base. Below float32 the sampler's log-probabilities are not used, see
        `sampler_is_exact`, so rounding the merged weights does not move the ratio from 1.
        """
        with self.roles.merged(POLICY, ROUNDED if self.merge_for_sampling else ()) as sampler:
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

    def collate(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pad prompts and completions to `input_ids`, `attention_mask` and `completion_mask`.

        Masks follow from lengths, not from token ids: the padding token may be a real one.
        """
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
        """Whether the sampler's log-probabilities equal a training pass's up to float32 rounding.

        In lower precision a cached decoding step and a pass over the whole sequence differ by far
        more, and the ratio of the first update would be noise.
        """
        base, config = self.roles.base, self.config
        quantized = getattr(base, "is_quantized", False)
        rounded = config.mixed_precision != "no" or config.tf32 or quantized
        return base.dtype == torch.float32 and not rounded

    def sampled_logps(self, completions: Sequence[Completion]) -> TokenLogps:
        """Pad the sampler's log-probabilities and entropies to shape (batch, completion)."""
        columns = ([c.logps for c in completions], [c.entropy for c in completions])
        padded = (
            pad_sequence([torch.tensor(row) for row in column], batch_first=True)
            for column in columns
        )
        return TokenLogps(*(tensor.to(self.roles.base.device) for tensor in padded))

    def run_roles(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        sampled: TokenLogps | None = None,
    ) -> RolloutOutputs:
        """Run policy, reference model and value model once over the completions.

        It goes in micro-batches of training's size: the logits of a whole rollout would be the
        largest tensor of a run. Completions of one prompt are adjacent and share its computation.

        Args:
            sampled: The policy's log-probabilities and entropies from the sampler, where they are
                exact; the policy is then not run.
        """
        outputs: dict[str, Tensor] = {}
        for rows, start, end, length in self.cropped_rows(attention_mask, completion_mask):
            ids, mask = input_ids[rows, start:end], attention_mask[rows, start:end]
            hidden = self.roles.shared_hidden_states(ids, mask)
            inputs = ids, mask, length, self.config.temperature, hidden
            cropped = {
                "ref_logps": self.roles(self.reference, *inputs).logps,
                "values": self.roles(VALUE, *inputs).values,
            }
            if sampled is None:
                policy = self.roles(POLICY, *inputs)
                cropped |= {"logps": policy.logps, "entropy": policy.entropy}
            for name, column in cropped.items():
                whole = outputs.setdefault(name, column.new_zeros(completion_mask.shape))
                whole[rows, :length] = torch.where(completion_mask[rows, :length], column, 0.0)
            if hidden is not None:
                shape = *attention_mask.shape, hidden.shape[-1]
                whole = outputs.setdefault("shared_hidden_states", hidden.new_zeros(shape))
                whole[rows, start:end] = hidden
        if sampled is not None:
            outputs |= sampled._asdict()
        hidden = outputs.pop("shared_hidden_states", None)
        return RolloutOutputs(shared_hidden_states=hidden, **outputs)

    def shared_hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
    ) -> Tensor | None:
        """Compute again, bit for bit, the shared hidden states that `run_roles` returned."""
        whole = None
        for rows, start, end, _ in self.cropped_rows(attention_mask, completion_mask):
            hidden = self.roles.shared_hidden_states(
                input_ids[rows, start:end], attention_mask[rows, start:end]
            )
            if hidden is not None:
                if whole is None:
                    whole = hidden.new_zeros(*attention_mask.shape, hidden.shape[-1])
                whole[rows, start:end] = hidden
        return whole

    def cropped_rows(
        self, attention_mask: Tensor, completion_mask: Tensor
    ) -> Iterator[tuple[Tensor, int, int, int]]:
        """Iterate over micro-batches: their rows, and the bounds of `crop_bounds`."""
        all_rows = torch.arange(len(attention_mask), device=attention_mask.device)
        for rows in all_rows.split(self.config.per_device_train_batch_size):
            yield rows, *crop_bounds(attention_mask[rows], completion_mask[rows])

    def adapt_kl_coef(self, kl: float, episodes: int) -> None:
        """Move `kl_coef` after a rollout of that mean KL, where the config has a `kl_target`."""
        if self.config.kl_target is not None:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, kl, self.config.kl_target, episodes, self.config.kl_horizon
            )

    def rescale_value_head(
        self, scale: RewardScale, combined: Tensor, by_function: Mapping[str, Sequence[float]]
    ) -> None:
        """Make a value head copied from the reward model predict effective scores.

        V' = (w V + m - mean) / std

        w is the reward model's weight, m the mean of the other functions' weighted scores, and
        (mean, std) the scale. A value head that started at 0 is left alone.
        """
        if self.value_from_reward_model:
            weight = self.scorer.weights[0]
            reward_model = torch.tensor(next(iter(by_function.values())), device=combined.device)
            means = (
                RewardScale.measure(scores, self.all_reduce).mean
                for scores in (combined, reward_model)
            )
            others = next(means) - weight * next(means)
            head = self.roles.head(VALUE)
            head.weight.mul_(weight / scale.std)
            head.bias.mul_(weight).add_(others - scale.mean).div_(scale.std)

    def state(self) -> dict[str, Any]:
        """Return what changes from rollout to rollout, for a checkpoint."""
        scale = self.scorer.scale
        return {"kl_coef": self.kl_coef, "scale": None if scale is None else asdict(scale)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.kl_coef = state["kl_coef"]
        if state["scale"] is not None:
            self.scorer.scale = RewardScale(**state["scale"])
