"""PPO's configuration. Names are those of TRL's removed PPOConfig where the meaning is the same."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class PPOConfig(TrainingArguments):
    """Training arguments of [`PPOTrainer`].

    A rollout has `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    episodes on each process. It is used for `num_ppo_epochs` epochs of `num_mini_batches`
    optimiser steps, then thrown away.

    >>> from rlhf_recipes import PPOConfig
    >>> PPOConfig(output_dir, num_generations=4, total_episodes=2048).cliprange
    0.2
    """

    learning_rate: float = field(
        default=3e-5,
        metadata={"help": "Ten times the rate of full fine-tuning: LoRA weights start at zero."},
    )
    adam_epsilon: float = field(
        default=1e-5, metadata={"help": "Adam's epsilon; 1e-5 as in the original PPO code."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Optimiser steps between two logs."})
    sft_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of an adapter that the policy starts from, and whose frozen copy is "
            "the reference; the base itself by default."
        },
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weight of each reward function, the reward model first; 1 by default."},
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimiser steps in one pass over a rollout."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Episodes in all, over all processes; replaces `num_train_epochs`."},
    )
    num_generations: int = field(default=1, metadata={"help": "Completions of each prompt."})
    max_completion_length: int = field(
        default=64, metadata={"help": "Tokens at which a completion is cut off."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature; log-probabilities use it too."}
    )
    generation_batch_size: int = field(
        default=64, metadata={"help": "Completions sampled at once on each process."}
    )
    missing_eos_penalty: float | None = field(
        default=1.0,
        metadata={"help": "Subtracted from the score of a completion that was cut off."},
    )
    normalize_rewards: bool = field(
        default=True,
        metadata={
            "help": "Shift and scale scores so that the reference's have mean 0 and deviation 1, "
            "as measured on the first rollout."
        },
    )
    reward_clip: float | None = field(
        default=None, metadata={"help": "Clip scores to [-c, c] after normalisation."}
    )
    whiten_rewards: bool = field(
        default=False,
        metadata={"help": "Divide per-token rewards by their deviation; their mean stays."},
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "Weight of the per-token KL penalty in the reward."}
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "KL an episode that `kl_coef` is steered to; left alone by default."},
    )
    kl_horizon: int = field(
        default=10_000,
        metadata={"help": "Episodes over which `kl_coef` changes by at most a fifth, about."},
    )
    kl_estimator: str = field(
        default="k1",
        metadata={"help": "Estimator of the penalty.", "choices": ["k1", "k3"]},
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy's ratio."})
    cliprange_value: float = field(
        default=0.2, metadata={"help": "Clip range of the value around its old prediction."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of the advantage estimation."})
    early_stop_approxkl: float | None = field(
        default=None,
        metadata={
            "help": "Leave out the rest of a rollout's updates once `policy/approxkl_avg` of a "
            "minibatch is above this."
        },
    )
    num_eval_prompts: int = field(
        default=64,
        metadata={"help": "Training prompts held out for evaluations during training."},
    )
    log_completions: bool = field(
        default=True, metadata={"help": "Write each rollout to completions/*.parquet."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [
            f"`{name}` is {getattr(self, name)}, but must be at least 1"
            for name in (
                "num_ppo_epochs",
                "num_mini_batches",
                "num_generations",
                "kl_horizon",
                "num_eval_prompts",
                "max_completion_length",
                "generation_batch_size",
            )
            if getattr(self, name) < 1
        ]
        wrong += [
            f"`{name}` is {getattr(self, name)}, but must lie between 0 and 1"
            for name in ("gamma", "lam")
            if not 0 <= getattr(self, name) <= 1
        ]
        wrong += [
            f"`{name}` is {getattr(self, name)}, but must not be negative"
            for name in ("kl_coef", "vf_coef", "entropy_coef", "missing_eos_penalty")
            if (getattr(self, name) or 0) < 0
        ]
        wrong += [
            f"`{name}` is {value}, but must be above 0"
            for name in (
                *("temperature", "cliprange", "cliprange_value", "reward_clip"),
                *("total_episodes", "kl_target", "early_stop_approxkl"),
            )
            if (value := getattr(self, name)) is not None and value <= 0
        ]
        wrong += self._contradictions()
        if wrong:
            raise ValueError("; ".join(wrong) + ".")

    def _contradictions(self) -> list[str]:
        """Values that are right alone and do not go together, or that PPO has no use for."""
        found = []
        if self.num_generations > 0 and self.rollout_size % self.num_generations:
            found.append(
                f"`num_generations` is {self.num_generations}, which does not divide the "
                f"{self.rollout_size} episodes of a rollout (`per_device_train_batch_size` x "
                "`gradient_accumulation_steps` x `num_mini_batches`)"
            )
        if self.total_episodes is not None and self.max_steps > 0:
            found.append(
                f"`total_episodes` is {self.total_episodes} and `max_steps` {self.max_steps}, but "
                "each sets the length of the run: give one of them (null for the other)"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            found.append("`kl_coef` is 0, which `kl_target` can only multiply: start it above 0")
        if self.fp16 and self.early_stop_approxkl is not None:
            found.append(
                "`early_stop_approxkl` does not go with `fp16`, whose gradient scaler wants "
                "gradients at every step: use `bf16`"
            )
        if self.eval_on_start or self.auto_find_batch_size:
            found.append(
                "PPO has no `eval_on_start` (the first rollout sets the scale of rewards, and is "
                "the base's) and no `auto_find_batch_size`: leave them out"
            )
        return found

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that one rollout serves."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def micro_steps_per_rollout(self) -> int:
        """Forward-backward passes that one rollout serves on a process."""
        return self.steps_per_rollout * self.gradient_accumulation_steps

    @property
    def rollout_size(self) -> int:
        """Episodes of one rollout on a process."""
        return (
            self.per_device_train_batch_size
            * self.gradient_accumulation_steps
            * self.num_mini_batches
        )

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts of one rollout on a process."""
        return self.rollout_size // self.num_generations
