"""PPO on transformers' Trainer: one frozen base, with policy, value, reward and reference as roles.

The Trainer keeps the loop, the optimiser, checkpoints, logging and processes. This file adds the
two things PPO does differently: where a batch comes from (a rollout) and what a step does with it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.ppo.checkpoint import RolesTrainer
from rlhf_recipes.ppo.checks import check_run, stop_at
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.ppo.metrics import Averages
from rlhf_recipes.ppo.objective import clipped_policy_loss, clipped_value_loss, entropy_bonus
from rlhf_recipes.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, attach_roles
from rlhf_recipes.ppo.rollout import RolloutWorker
from rlhf_recipes.ppo.schedule import Schedule
from rlhf_recipes.ppo.scoring import Scorer
from rlhf_recipes.ppo.tables import Table, rollout_metrics, sample_table, write_table
from rlhf_recipes.reward_functions import RewardFunc
from rlhf_recipes.rewards import RewardModel
from rlhf_recipes.roles import Roles


class PPOTrainer(RolesTrainer):
    """Train a LoRA policy with PPO; all its roles are adapters on one frozen base.

    Args:
        model: The base.
        args: PPO's configuration.
        train_dataset: A `prompt` column, plain texts or conversations. Reward functions are given
            its other columns.
        processing_class: The tokenizer, with the chat template for conversations.
        peft_config: LoRA of the policy, unless `args.sft_model_path` gives it an adapter.
        reward_model_path: A reward adapter, or its folder, trained on that base: the first reward
            function, and what the value role starts from. Without one the value starts at 0.
        reward_funcs: Further reward functions, as GRPOTrainer takes them.
        eval_dataset: Prompts for `evaluate`, as `train_dataset`.
        sft_model: The adapter of `args.sft_model_path`, where it was read already.
        prefix_sharing: Whether completions of one prompt share its computation.

    >>> from rlhf_recipes import PPOConfig, PPOTrainer
    >>> def brevity(prompts, completions, **_):
    ...     return [-float(len(completion)) for completion in completions]
    >>> trainer = PPOTrainer(
    ...     model=AutoModelForCausalLM.from_pretrained(base),
    ...     args=PPOConfig(output_dir, total_episodes=16, max_completion_length=8),
    ...     train_dataset=Dataset.from_dict({"prompt": ["Say something.", "Why?"] * 8}),
    ...     processing_class=AutoTokenizer.from_pretrained(base),
    ...     peft_config=LoraConfig(target_modules="all-linear"),
    ...     reward_funcs=[brevity],
    ... )
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'loss': ...
    8
    """

    args: PPOConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None = None,
        reward_model_path: str | Adapter | None = None,
        reward_funcs: Sequence[RewardFunc] = (),
        eval_dataset: Dataset | None = None,
        *,
        sft_model: Adapter | None = None,
        prefix_sharing: bool = True,
        **kwargs: Any,
    ) -> None:
        check_run(args, model, processing_class, train_dataset, eval_dataset)
        set_seed(args.seed)  # before LoRA's weights are drawn, as TRL's trainers do
        self.roles = Roles(model, prefix_sharing=prefix_sharing)
        start = sft_model or args.sft_model_path
        attach_roles(self.roles, reward_model_path, peft_config, start)
        self.schedule = Schedule(args, len(train_dataset))
        if args.total_episodes is not None:
            args.max_steps = self.schedule.steps(args.total_episodes)
        super().__init__(
            model=self.roles,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if reward_model_path is not None:
            size = args.per_device_train_batch_size
            reward_model = RewardModel(self.roles, processing_class, REWARD, size)
            reward_funcs = [reward_model, *reward_funcs]
        self.worker = RolloutWorker(
            self.roles,
            processing_class,
            Scorer(reward_funcs, args, self.total),
            args,
            REFERENCE if args.sft_model_path else None,
            self.total,
            value_is_reward=reward_model_path is not None,
        )
        self.episodes: Episodes | None = None
        self.stopped_early = False  # whether the rollout in use serves no further update
        self.micro_step: int | None = None
        self._approxkl = 0.0
        self._collected = 0  # episodes, since `_began`
        self._began = time.monotonic()
        self.averages = Averages(self.total, args.device)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; a second call begins a run of its own."""
        self.micro_step, self._approxkl = None, 0.0
        self.averages.noted.clear()
        self._began, self._collected = time.monotonic(), 0
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One element for every micro-step of an epoch on each process; it says nothing.

        What a micro-step learns from follows from its number: see `schedule.py`.
        """
        numbers: Any = range(self.schedule.micro_steps_per_epoch * self.args.world_size)
        loader = DataLoader(numbers, collate_fn=lambda rows: {"micro_step": rows[0]})
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def start_rollout(self, number: int) -> None:
        """Sample and score rollout `number` with the policy as it now is."""
        assert isinstance(self.train_dataset, Dataset)
        rows = self.train_dataset[self.schedule.prompt_rows(number)]
        self.episodes, table = self._collect(
            rows, self.schedule.seed(number), f"completions_{number:05d}"
        )
        self.stopped_early = False
        self._collected += len(table["score"])
        metrics = rollout_metrics(table, self.worker.kl_coef)
        self.averages.note(metrics)
        self.worker.adapt_kl_coef(metrics["objective/kl"], len(table["score"]))

    def _collect(self, rows: dict[str, Any], seed: int, name: str) -> tuple[Episodes, Table]:
        """Episodes of those rows of a dataset, and the table of all processes' episodes."""
        columns = dict(rows)
        # Every process samples with a seed of its own.
        own_seed = seed * self.args.world_size + self.args.process_index
        rollout = self.worker.collect(columns.pop("prompt"), own_seed, columns)
        table = {name: gather_object(column) for name, column in rollout.table.items()}
        if self.args.log_completions and self.is_world_process_zero():
            write_table(table, Path(str(self.args.output_dir)) / "completions" / f"{name}.parquet")
        return rollout.episodes, table

    def next_episodes(self) -> tuple[Episodes, float, bool]:
        """The micro-batch of this step, of a new rollout when the last has served its epochs.

        With it come the tokens its minibatch has on average a process, and whether it is the
        minibatch's last part.
        """
        if self.micro_step is None:  # the first step of a run, or of a resumed one
            self.micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        place = self.schedule.place(self.micro_step)
        self.micro_step += 1
        if place.first:
            self.start_rollout(place.rollout)
        assert self.episodes is not None
        rows = self.schedule.minibatch_rows(place)
        parts = rows.split(self.args.per_device_train_batch_size)
        tokens = float(self.total(self.episodes.completion_mask[rows].sum().float()))
        return (
            self.episodes.rows(parts[place.part]),
            tokens / self.args.world_size,
            place.part == len(parts) - 1,
        )

    def training_step(
        self,
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Gradients of policy and value on one micro-batch; the sum of both losses, detached.

        Each loss is taken back through the model before the next role is switched on: gradient
        checkpointing recomputes activations with the adapter that is active then. Once an update
        is stopped early there are no gradients, and the optimiser leaves the weights alone.
        """
        episodes, num_tokens, last_part = self.next_episodes()
        if self.stopped_early:
            return torch.zeros((), device=self.args.device)
        model.train()
        with self.roles.use(POLICY):
            policy_loss = self.policy_loss(model, episodes, num_tokens)
            self._backward(policy_loss, "policy", episodes)
        with self.roles.use(VALUE):
            value_loss = self.value_loss(model, episodes, num_tokens)
            self._backward(value_loss, "value", episodes)
        if last_part:
            limit, self._approxkl, found = self.args.early_stop_approxkl, 0.0, self._approxkl
            self.stopped_early = limit is not None and found > limit
        return (policy_loss + value_loss).detach()

    def policy_loss(self, model: nn.Module, episodes: Episodes, num_tokens: float) -> Tensor:
        """Clipped surrogate less the entropy bonus, as this micro-batch's share."""
        inputs = *episodes.inputs(), self.args.temperature, episodes.trunk
        logps, entropy = model(POLICY, *inputs, entropy_grad=self.args.entropy_coef > 0)
        policy = clipped_policy_loss(
            logps,
            episodes.old_logps,
            episodes.advantages,
            episodes.completion_mask,
            self.args.cliprange,
            num_tokens,
        )
        bonus = entropy_bonus(entropy, episodes.completion_mask, num_tokens)
        tokens = episodes.completion_mask.sum()
        self.averages.note(
            {
                "loss/policy_avg": policy.loss * num_tokens / tokens,
                "policy/approxkl_avg": policy.approxkl,
                "policy/clipfrac_avg": policy.clipfrac,
                "val/ratio": policy.ratio,
                "val/ratio_var": policy.ratio_var,
            },
            weight=tokens,
        )
        if self.args.early_stop_approxkl is not None:
            share = policy.approxkl * tokens / num_tokens
            self._approxkl += float(self.total(share)) / self.args.world_size
        return policy.loss - self.args.entropy_coef * bonus

    def value_loss(self, model: nn.Module, episodes: Episodes, num_tokens: float) -> Tensor:
        """Clipped value loss times its weight, as this micro-batch's share."""
        value = clipped_value_loss(
            model(VALUE, *episodes.inputs(), trunk=episodes.trunk),
            episodes.old_values,
            episodes.returns,
            episodes.completion_mask,
            self.args.cliprange_value,
            num_tokens,
        )
        tokens = episodes.completion_mask.sum()
        found = {"loss/value_avg": value.loss * num_tokens / tokens}
        self.averages.note(found | {"val/clipfrac_avg": value.clipfrac}, weight=tokens)
        return self.args.vf_coef * value.loss

    def _backward(self, loss: Tensor, role: str, episodes: Episodes) -> None:
        """Gradients of a loss, on every process or on none."""
        if float(self.total((~loss.isfinite()).float())):
            stop_at(loss, role, episodes, self.args, self.state.global_step)
        self.accelerator.backward(loss)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[no-any-return]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The metrics of a rollout on held-out prompts, always with the same seed.

        Writes the completions beside those of training, and shows a few of them.
        """
        prompts = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(prompts, Dataset)
        assert self.worker.scorer.scale is not None, "train first: the base sets the scale"
        started = time.monotonic()
        mine = range(self.args.process_index, len(prompts), self.args.world_size)
        name = f"{metric_key_prefix}_{self.state.global_step:05d}"
        _, table = self._collect(prompts[list(mine)], self.schedule.seed(0) + 1, name)
        found = rollout_metrics(table, self.args.kl_coef)  # one measure, though kl_coef may move
        found["runtime"] = time.monotonic() - started
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        super().log(metrics)
        if self.is_world_process_zero():
            tqdm.write(sample_table(table))
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what has been noted since the last time, averaged, with the episodes so far."""
        averages = self.averages.take()
        if averages:
            rollouts = self.schedule.rollouts(self.state.global_step)
            averages["episode"] = rollouts * self.args.rollout_size * self.args.world_size
            averages["eps"] = self._collected / (time.monotonic() - self._began)
        super().log({**logs, **averages}, start_time)
