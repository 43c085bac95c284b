"""PPO on transformers' Trainer: one frozen base, with policy, value, reward and reference as roles.

The Trainer keeps the loop, the optimizer, logging, checkpoints and processes. This file adds what
is different in PPO: where a batch comes from (a rollout), what a step does with it, and what a
checkpoint holds (adapters and the rollout in use).
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
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import Adapter
from rlhf_recipes.models.classifiers import RewardSource, read_reward_model
from rlhf_recipes.ppo.attaching import POLICY, REFERENCE, REWARD, VALUE, attach_roles
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.episodes import Episodes
from rlhf_recipes.ppo.metrics import RunningMeans
from rlhf_recipes.ppo.objective import clipped_policy_loss, clipped_value_loss, entropy_bonus
from rlhf_recipes.ppo.rollout import RolloutWorker
from rlhf_recipes.ppo.schedule import Schedule
from rlhf_recipes.ppo.scoring import EpisodeScorer
from rlhf_recipes.ppo.tables import Table, format_samples, rollout_metrics, write_table
from rlhf_recipes.reward_functions import RewardFunc
from rlhf_recipes.rewards import RewardModel, Scorer, open_reward_model
from rlhf_recipes.roles import Roles

STATE_FILE = "ppo_state_{process}.pt"


class PPOTrainer(Trainer):
    """Train a LoRA policy with PPO; all its roles are adapters on one frozen base.

    Args:
        model: The base.
        args: PPO's configuration.
        train_dataset: A column `prompt` of plain texts or conversations. Reward functions receive
            the other columns.
        processing_class: The tokenizer, with the chat template for conversations.
        peft_config: LoRA of the policy, unless `args.sft_model_path` gives it an adapter.
        reward_model_path: A reward adapter trained on that base, or its folder. It is the first
            reward function, and the value model starts as its copy. A whole classifier, a folder or
            a Hub id (`owner/name@revision`), is loaded beside the base; the value model then
            starts at 0, as without a reward model.
        reward_funcs: Further reward functions, as GRPOTrainer takes them.
        eval_dataset: Prompts for `evaluate`, in the form of `train_dataset`.
        sft_model: The adapter of `args.sft_model_path`, if it has been read already.
        prefix_sharing: Whether completions of one prompt share its computation.
        merge_for_sampling: As the key of a recipe: `arguments.RewardArguments`.
        kwargs: Further arguments of transformers' Trainer.

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
        reward_model_path: str | RewardSource | None = None,
        reward_funcs: Sequence[RewardFunc] = (),
        eval_dataset: Dataset | None = None,
        *,
        sft_model: Adapter | None = None,
        prefix_sharing: bool = True,
        merge_for_sampling: bool = True,
        **kwargs: Any,
    ) -> None:
        args.check_inputs(model, processing_class, train_dataset, eval_dataset)
        set_seed(args.seed)  # before LoRA's weights are drawn, as TRL's trainers do
        self.roles = Roles(model, prefix_sharing=prefix_sharing)
        start = sft_model or args.sft_model_path
        reward = None if reward_model_path is None else read_reward_model(reward_model_path)
        adapter = reward if isinstance(reward, Adapter) else None
        attach_roles(self.roles, processing_class, adapter, peft_config, start)
        self.schedule = Schedule(args, len(train_dataset))
        if args.total_episodes is not None:
            args.max_steps = self.schedule.num_steps(args.total_episodes)
        super().__init__(
            model=self.roles,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if reward is not None:
            reward_model: Scorer
            if adapter is None:
                reward_model = open_reward_model(reward)
            else:
                reward_model = RewardModel(self.roles, processing_class, REWARD)
            reward_model.batch_size = args.per_device_train_batch_size
            reward_funcs = [reward_model, *reward_funcs]
        self.worker = RolloutWorker(
            self.roles,
            processing_class,
            EpisodeScorer(reward_funcs, args, self.all_reduce),
            args,
            REFERENCE if args.sft_model_path else None,
            self.all_reduce,
            value_from_reward_model=adapter is not None,
            merge_for_sampling=merge_for_sampling,
        )
        self.means = RunningMeans(self.all_reduce, args.device)
        self.episodes: Episodes | None = None  # of the rollout in use
        self.stopped_early = False  # whether the rollout in use serves no further update
        self.micro_step: int | None = None  # number of the next one; None before the first
        self._approxkl = 0.0  # of the minibatch so far
        self._num_collected, self._start_time = 0, time.monotonic()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train from the start or from a checkpoint, as the Trainer does; may be called again."""
        self.micro_step, self._approxkl = None, 0.0
        self.means.sums.clear()
        self._num_collected, self._start_time = 0, time.monotonic()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return one empty element per micro-step of an epoch; see `schedule.py` for the batches.

        What a micro-step learns from follows from its number, which `next_micro_batch` counts.
        """
        numbers: Any = range(self.schedule.micro_steps_per_epoch * self.args.world_size)
        loader = DataLoader(numbers, collate_fn=lambda rows: {"micro_step": rows[0]})
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def start_rollout(self, rollout: int) -> None:
        """Sample and score the rollout of that number with the current policy."""
        assert isinstance(self.train_dataset, Dataset)
        self.episodes, table = self._collect(
            self.train_dataset[self.schedule.prompt_rows(rollout)],
            self.schedule.rollout_seed(rollout),
            f"completions_{rollout:05d}",
        )
        self.stopped_early = False
        self._num_collected += len(table["score"])
        metrics = rollout_metrics(table, self.worker.kl_coef)
        self.means.add(metrics)
        self.worker.adapt_kl_coef(metrics["objective/kl"], len(table["score"]))

    def _collect(self, rows: dict[str, Any], seed: int, name: str) -> tuple[Episodes, Table]:
        """Collect a rollout on rows of a dataset; the table has the episodes of all processes."""
        columns = dict(rows)
        process_seed = seed * self.args.world_size + self.args.process_index
        rollout = self.worker.collect(columns.pop("prompt"), process_seed, columns)
        table = {name: gather_object(column) for name, column in rollout.table.items()}
        if self.args.log_completions and self.is_world_process_zero():
            write_table(table, Path(str(self.args.output_dir)) / "completions" / f"{name}.parquet")
        return rollout.episodes, table

    def next_micro_batch(self) -> tuple[Episodes, float, bool]:
        """Return the episodes of the next micro-step, collecting a new rollout where one starts.

        Returns:
            The episodes, the number of tokens in their minibatch (a mean over processes), and
            whether they are the last micro-batch of it.
        """
        if self.micro_step is None:  # the first step of a run, or of a resumed one
            self.micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        position = self.schedule.position(self.micro_step)
        self.micro_step += 1
        if position.starts_rollout:
            self.start_rollout(position.rollout)
        assert self.episodes is not None
        rows = self.schedule.minibatch_rows(position)
        micro_batches = rows.split(self.args.per_device_train_batch_size)
        tokens = float(self.all_reduce(self.episodes.completion_mask[rows].sum().float()))
        return (
            self.episodes.select(micro_batches[position.micro_batch]),
            tokens / self.args.world_size,
            position.micro_batch == len(micro_batches) - 1,
        )

    def training_step(
        self,
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute the gradients of policy and value model on one micro-batch.

        Each loss is backpropagated before the next role is switched on: gradient checkpointing
        recomputes activations with the adapter that is active then. After `early_stop_approxkl`
        there are no gradients, and the optimizer leaves the weights alone.

        Returns:
            The sum of both losses, detached.
        """
        episodes, num_tokens, ends_minibatch = self.next_micro_batch()
        if self.stopped_early:
            return torch.zeros((), device=self.args.device)
        model.train()
        with self.roles.use(POLICY):
            policy_loss = self.policy_loss(model, episodes, num_tokens)
            self._backward(policy_loss, "policy", episodes)
        with self.roles.use(VALUE):
            value_loss = self.value_loss(model, episodes, num_tokens)
            self._backward(value_loss, "value", episodes)
        if ends_minibatch:
            limit, approxkl = self.args.early_stop_approxkl, self._approxkl
            self.stopped_early = limit is not None and approxkl > limit
            self._approxkl = 0.0
        return (policy_loss + value_loss).detach()

    def policy_loss(self, model: nn.Module, episodes: Episodes, num_tokens: float) -> Tensor:
        """Compute the clipped surrogate loss minus the entropy bonus, summed to num_tokens."""
        inputs = *episodes.model_inputs(), self.args.temperature, episodes.shared_hidden_states
        output = model(POLICY, *inputs, entropy_grad=self.args.entropy_coef > 0)
        policy = clipped_policy_loss(
            output.logps,
            episodes.old_logps,
            episodes.advantages,
            episodes.completion_mask,
            self.args.cliprange,
            num_tokens,
        )
        bonus = entropy_bonus(output.entropy, episodes.completion_mask, num_tokens)
        tokens = episodes.completion_mask.sum()
        self.means.add(
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
            approxkl = policy.approxkl * tokens / num_tokens
            self._approxkl += float(self.all_reduce(approxkl)) / self.args.world_size
        return policy.loss - self.args.entropy_coef * bonus

    def value_loss(self, model: nn.Module, episodes: Episodes, num_tokens: float) -> Tensor:
        """Compute the clipped value loss times `vf_coef`."""
        value = clipped_value_loss(
            model(
                VALUE, *episodes.model_inputs(), shared_hidden_states=episodes.shared_hidden_states
            ).values,
            episodes.old_values,
            episodes.returns,
            episodes.completion_mask,
            self.args.cliprange_value,
            num_tokens,
        )
        tokens = episodes.completion_mask.sum()
        loss = value.loss * num_tokens / tokens
        self.means.add({"loss/value_avg": loss, "val/clipfrac_avg": value.clipfrac}, weight=tokens)
        return self.args.vf_coef * value.loss

    def _backward(self, loss: Tensor, role: str, episodes: Episodes) -> None:
        """Backpropagate a loss on all processes; raise RecipeError on all if one is not finite."""
        if float(self.all_reduce((~loss.isfinite()).float())):
            file = Path(str(self.args.output_dir)) / f"not_finite_{self.args.process_index}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(vars(episodes), file)
            raise RecipeError(
                f"The {role} loss is {loss.item()} at step {self.state.global_step}, and no weight "
                f"was changed by it. Its batch is saved in {file}, and the newest checkpoint is "
                "from before. The usual cause is a `learning_rate` too high."
            )
        self.accelerator.backward(loss)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[no-any-return]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Compute the metrics of a rollout on held-out prompts, always with the same seed.

        Its completions are written beside those of training, and a few of them are shown.
        """
        prompts = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(prompts, Dataset)
        assert self.worker.scorer.scale is not None, "train first: the base sets the scale"
        start_time = time.monotonic()
        rows = range(self.args.process_index, len(prompts), self.args.world_size)
        name = f"{metric_key_prefix}_{self.state.global_step:05d}"
        seed = self.schedule.rollout_seed(0) + 1
        _, table = self._collect(prompts[list(rows)], seed, name)
        # The configured kl_coef, so that evaluations compare though the coefficient may move.
        metrics = rollout_metrics(table, self.args.kl_coef)
        metrics["runtime"] = time.monotonic() - start_time
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        super().log(metrics)
        if self.is_world_process_zero():
            tqdm.write(format_samples(table))
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means since the last time, with the number of episodes so far."""
        means = self.means.pop()
        if means:
            rollouts = self.schedule.num_rollouts(self.state.global_step)
            means["episode"] = rollouts * self.args.rollout_size * self.args.world_size
            means["eps"] = self._num_collected / (time.monotonic() - self._start_time)
        super().log({**logs, **means}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy adapter, the value adapter in a subfolder, and the tokenizer.

        A checkpoint also holds the rollout in use, for a resumed run to continue with.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            self.roles.save_role(POLICY, folder)
            self.roles.save_role(VALUE, folder / VALUE)
            assert isinstance(self.processing_class, PreTrainedTokenizerBase)
            self.processing_class.save_pretrained(folder)
        if _internal_call:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._state(), folder / STATE_FILE.format(process=self.args.process_index))

    def _state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside weights, optimizer and random state."""
        finished = (self.micro_step or 0) % self.args.micro_steps_per_rollout == 0
        episodes = None
        if self.episodes is not None and not finished:
            # The shared hidden states are by far the largest part, and follow from the rest.
            episodes = {**vars(self.episodes), "shared_hidden_states": None}
        return {
            "episodes": episodes,
            "stopped_early": self.stopped_early,
            "means": self.means.state(),
            "processes": self.args.world_size,
            **self.worker.state(),
        }

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        # Private, yet the one place where the Trainer loads weights: its own version knows whole
        # models and PEFT models, not roles.
        folder = Path(resume_from_checkpoint)
        self._load_roles(folder)
        # A process that has no file of its own learns from the first one's how many there were.
        files = [folder / STATE_FILE.format(process=i) for i in (self.args.process_index, 0)]
        file = next(file for file in files if file.exists())
        state = torch.load(file, map_location=self.roles.base.device, weights_only=True)
        if state["processes"] != self.args.world_size:
            raise RecipeError(
                f"{folder} was written by {state['processes']} processes, and there are "
                f"{self.args.world_size} now. Each continues with the rollout it had: start as "
                "many as before."
            )
        self.worker.restore(state)
        self.stopped_early = state["stopped_early"]
        self.means.restore(state["means"])
        if state["episodes"] is not None:
            self.episodes = episodes = Episodes(**state["episodes"])
            episodes.shared_hidden_states = self.worker.shared_hidden_states(
                episodes.input_ids, episodes.attention_mask, episodes.completion_mask
            )

    def _load_best_model(self) -> None:
        self._load_roles(Path(str(self.state.best_model_checkpoint)))

    def _load_roles(self, folder: Path) -> None:
        self.roles.load_role(POLICY, folder)
        self.roles.load_role(VALUE, folder / VALUE)
