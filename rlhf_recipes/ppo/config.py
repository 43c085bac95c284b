"""Configuration of PPO, in the names of TRL's removed PPOConfig where the meaning is the same."""

from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from rlhf_recipes.models.vocabulary import check_padding
from rlhf_recipes.preferences.truncation import check_context, prompt_rows
from rlhf_recipes.sharding import check_unsharded
from rlhf_recipes.steps import check_held_out, micro_batches


@dataclass
class PPOConfig(TrainingArguments):
    """Training arguments of [`PPOTrainer`].

    A rollout has `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches`
    episodes on each process. It serves `num_ppo_epochs` epochs of `num_mini_batches` optimizer
    steps, and is then discarded.

    >>> from rlhf_recipes import PPOConfig
    >>> PPOConfig(output_dir, num_generations=4, total_episodes=2048).cliprange
    0.2
    """

    learning_rate: float = field(
        default=3e-5,
        metadata={"help": "Ten times the rate of full fine-tuning: LoRA weights start at zero."},
    )
    adam_epsilon: float = field(
        default=1e-5, metadata={"help": "Adam's epsilon; 1e-5 as in OpenAI Baselines' PPO."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Optimizer steps between two logs."})
    sft_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of an adapter that the policy starts from. Its frozen copy is then the "
            "reference model; without it that is the base."
        },
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weight of each reward function, the reward model first; 1 by default."},
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps per pass over a rollout."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={
            "help": "Length of the run in episodes over all processes, in place of "
            "`num_train_epochs`."
        },
    )
    num_generations: int = field(default=1, metadata={"help": "Completions per prompt."})
    max_completion_length: int = field(
        default=64, metadata={"help": "Maximum number of tokens per completion."}
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Sampling temperature, which all log-probabilities use as well."},
    )
    generation_batch_size: int = field(
        default=64, metadata={"help": "Completions that a process samples at the same time."}
    )
    missing_eos_penalty: float | None = field(
        default=1.0,
        metadata={
            "help": "Subtracted from the score of a completion that was cut off; None for nothing."
        },
    )
    normalize_rewards: bool = field(
        default=True,
        metadata={
            "help": "Normalize scores by the mean and std of the first rollout's, which the "
            "reference model sampled."
        },
    )
    reward_clip: float | None = field(
        default=None,
        metadata={"help": "Clip normalized scores to [-c, c]; None does not clip."},
    )
    whiten_rewards: bool = field(
        default=False,
        metadata={"help": "Divide per-token rewards by their std; they are not centered."},
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "Weight of the per-token KL penalty in the reward."}
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "Target KL in nats per episode for the adaptive controller; None keeps "
            "`kl_coef` fixed."
        },
    )
    kl_horizon: int = field(
        default=10_000,
        metadata={
            "help": "Episodes over which the adaptive controller changes `kl_coef` by about a "
            "fifth at most."
        },
    )
    kl_estimator: str = field(
        default="k1",
        metadata={
            "help": "Estimator of the per-token KL: k1 = d, or k3 = exp(-d) - 1 + d, with d = "
            "logp - ref_logp.",
            "choices": ["k1", "k3"],
        },
    )
    cliprange: float = field(
        default=0.2, metadata={"help": "Clip range of the policy's probability ratio."}
    )
    cliprange_value: float = field(
        default=0.2, metadata={"help": "Clip range of the values around the old predictions."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(
        default=0.95, metadata={"help": "Lambda of generalized advantage estimation (GAE)."}
    )
    early_stop_approxkl: float | None = field(
        default=None,
        metadata={
            "help": "Skip the remaining updates of a rollout once `policy/approxkl_avg` of a "
            "minibatch exceeds this; None skips nothing."
        },
    )
    num_eval_prompts: int = field(
        default=64,
        metadata={"help": "Training prompts held out for evaluation during training."},
    )
    log_completions: bool = field(
        default=True, metadata={"help": "Write each rollout to completions/*.parquet."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
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
        problems += [
            f"`{name}` is {getattr(self, name)}, but must lie between 0 and 1"
            for name in ("gamma", "lam")
            if not 0 <= getattr(self, name) <= 1
        ]
        problems += [
            f"`{name}` is {getattr(self, name)}, but must not be negative"
            for name in ("kl_coef", "vf_coef", "entropy_coef", "missing_eos_penalty")
            if (getattr(self, name) or 0) < 0
        ]
        problems += [
            f"`{name}` is {value}, but must be above 0"
            for name in (
                *("temperature", "cliprange", "cliprange_value", "reward_clip"),
                *("total_episodes", "kl_target", "early_stop_approxkl"),
            )
            if (value := getattr(self, name)) is not None and value <= 0
        ]
        problems += self._contradictions()
        if problems:
            raise ValueError("; ".join(problems) + ".")

    def _contradictions(self) -> list[str]:
        """List values that contradict each other, or that PPO has no use for."""
        problems = []
        if self.num_generations > 0 and self.rollout_size % self.num_generations:
            problems.append(
                f"`num_generations` is {self.num_generations}, which does not divide the "
                f"{self.rollout_size} episodes of a rollout (`per_device_train_batch_size` x "
                "`gradient_accumulation_steps` x `num_mini_batches`)"
            )
        if self.total_episodes is not None and self.max_steps > 0:
            problems.append(
                f"`total_episodes` is {self.total_episodes} and `max_steps` {self.max_steps}, but "
                "each sets the length of the run: give one of them (null for the other)"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            problems.append("`kl_coef` is 0, which `kl_target` can only multiply: start it above 0")
        if self.fp16 and self.early_stop_approxkl is not None:
            problems.append(
                "`early_stop_approxkl` does not go with `fp16`, whose gradient scaler needs "
                "gradients at every step: use `bf16`"
            )
        if self.eval_on_start or self.auto_find_batch_size:
            problems.append(
                "PPO has no `eval_on_start` (the first rollout sets the scale of the scores, and "
                "must be the reference model's) and no `auto_find_batch_size`: leave them out"
            )
        return problems

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that one rollout serves."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def micro_steps_per_rollout(self) -> int:
        """Forward and backward passes that one rollout serves on a process."""
        return self.steps_per_rollout * self.gradient_accumulation_steps

    @property
    def rollout_size(self) -> int:
        """Episodes per rollout on a process."""
        return (
            self.per_device_train_batch_size
            * self.gradient_accumulation_steps
            * self.num_mini_batches
        )

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts per rollout on a process."""
        return self.rollout_size // self.num_generations

    def check_inputs(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: Dataset,
        eval_dataset: Dataset | None,
    ) -> None:
        """Raise RecipeError if a run on these inputs cannot work, before any of them is changed.

        The table of `rlhf_recipes.checks` has refused such a recipe already, in the same words and
        before any weights were loaded. This is for a trainer constructed in Python.
        """
        check_unsharded(self)
        check_padding(tokenizer)
        micro_batches("ppo", len(train_dataset), self)
        splits = {"train": train_dataset}
        if eval_dataset is not None:
            check_held_out(len(eval_dataset), self.world_size)
            splits["evaluation"] = eval_dataset
        rows = {
            split: prompt_rows(prompts["prompt"], tokenizer, self.max_completion_length)
            for split, prompts in splits.items()
        }
        check_context(base.config, rows)
