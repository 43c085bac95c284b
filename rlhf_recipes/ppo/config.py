"""PPO's configuration. Names are those of TRL's removed PPOConfig where the meaning is the same."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class PPOConfig(TrainingArguments):
    """Training arguments of [`PPOTrainer`].

    A rollout has `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    episodes on each process. It is used for `num_ppo_epochs` epochs of `num_mini_batches`
    optimiser steps, then thrown away.
    """

    learning_rate: float = field(
        default=3e-5,
        metadata={"help": "Ten times the rate of full fine-tuning: LoRA weights start at zero."},
    )
    adam_epsilon: float = field(
        default=1e-5, metadata={"help": "Adam's epsilon; 1e-5 as in the original PPO code."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Optimiser steps between two logs."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimiser steps in one pass over a rollout."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Episodes in all, over all processes; replaces `num_train_epochs`."},
    )
    max_completion_length: int = field(
        default=64, metadata={"help": "Tokens at which a completion is cut off."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Sampling temperature; log-probabilities use it too."}
    )
    generation_batch_size: int = field(
        default=32, metadata={"help": "Completions sampled at once on each process."}
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
            f"`{name}` is {getattr(self, name)}, but must be above 0"
            for name in ("temperature", "cliprange", "cliprange_value")
            if getattr(self, name) <= 0
        ]
        if wrong:
            raise ValueError("; ".join(wrong) + ".")

    @property
    def micro_steps_per_rollout(self) -> int:
        """Forward-backward passes that one rollout serves on a process."""
        return self.num_ppo_epochs * self.num_mini_batches * self.gradient_accumulation_steps

    @property
    def rollout_size(self) -> int:
        """Episodes of one rollout on a process."""
        return (
            self.per_device_train_batch_size
            * self.gradient_accumulation_steps
            * self.num_mini_batches
        )
