"""PPO on transformers' Trainer: one frozen base, with policy, value, reward and reference as roles.

The Trainer keeps the loop, the optimiser, checkpoints, logging and processes. This file adds the
two things PPO does differently: where a batch comes from (a rollout) and what a step does with it.
"""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from rlhf_recipes.adapters import assert_same_base, require_head
from rlhf_recipes.arguments import RecipeError
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.objective import clipped_policy_loss, clipped_value_loss, entropy_bonus
from rlhf_recipes.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, build_roles
from rlhf_recipes.ppo.rollout import Episodes, RewardScale, Rollout, RolloutWorker
from rlhf_recipes.rewards import RewardModel

STATE_FILE = "ppo_state.pt"


class PPOTrainer(Trainer):
    """Train a LoRA policy with PPO against a reward adapter on the same frozen base.

    Args:
        model: The base. All roles become adapters on it.
        args: PPO's configuration.
        reward_model_path: Folder of a reward adapter trained on that base; the value role starts
            from it as well.
        train_dataset: A `prompt` column, plain texts or conversations.
        processing_class: The tokenizer, with the chat template for conversations.
        peft_config: LoRA of the policy, when it starts from the base.
        policy_path: An adapter to start the policy from; a frozen copy of it is the reference.
            Without one the reference is the base, with all adapters off.
    """

    args: PPOConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig,
        reward_model_path: str,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        peft_config: PeftConfig | None = None,
        policy_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        assert_same_base(reward_model_path, str(model.name_or_path))
        require_head(reward_model_path)
        _refuse_sharding(args)
        set_seed(args.seed)  # before LoRA's weights are drawn, as TRL's trainers do
        self.roles = build_roles(model, reward_model_path, peft_config, policy_path)
        if args.total_episodes is not None:
            episodes_per_step = args.rollout_size * args.world_size
            rollouts = -(-args.total_episodes // episodes_per_step)
            args.max_steps = rollouts * args.num_ppo_epochs * args.num_mini_batches
        super().__init__(
            model=self.roles,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.worker = RolloutWorker(
            self.roles,
            processing_class,
            RewardModel(self.roles, processing_class, REWARD, args.per_device_train_batch_size),
            args,
            REFERENCE if policy_path else None,
            self.total,
        )
        self.rollout: Rollout | None = None
        self._micro_step: int | None = None
        self._logged: dict[str, list[float]] = defaultdict(list)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One element for every micro-step of an epoch on each process.

        The elements say nothing: which prompts a rollout has follows from its number alone, so that
        a resumed run reads what an uninterrupted one would have read, on any number of processes.
        """
        dataset, size = self.train_dataset, self.args.rollout_size * self.args.world_size
        assert isinstance(dataset, Dataset)
        if len(dataset) < size:
            raise RecipeError(
                f"There are {len(dataset)} training prompts, and one rollout takes {size} "
                f"({self.args.rollout_size} on each of {self.args.world_size} processes). Lower "
                "`per_device_train_batch_size`, `gradient_accumulation_steps` or "
                "`num_mini_batches`, or give more prompts."
            )
        steps = len(dataset) // size * self.args.micro_steps_per_rollout * self.args.world_size
        numbers: Any = range(steps)
        loader = DataLoader(numbers, collate_fn=lambda rows: {"micro_step": rows[0]})
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def prompt_rows(self, number: int) -> list[int]:
        """The rows of the training data that rollout `number` has on this process.

        An epoch is a shuffle drawn from the seed and the epoch; prompts that do not fill a whole
        rollout at its end are left for another epoch's shuffle.
        """
        assert isinstance(self.train_dataset, Dataset)
        num_prompts, size = len(self.train_dataset), self.args.rollout_size
        together = size * self.args.world_size
        epoch, place = divmod(number, num_prompts // together)
        generator = torch.Generator().manual_seed(self.args.seed + epoch)
        start = place * together + self.args.process_index * size
        return torch.randperm(num_prompts, generator=generator)[start : start + size].tolist()

    def next_episodes(self) -> tuple[Episodes, float]:
        """The micro-batch of this step and the tokens its minibatch has on average a process.

        A new rollout is collected when the last one has served all its epochs. Each epoch visits
        the rollout in an order of its own, drawn from the seed and the rollout's number.
        """
        args = self.args
        if self._micro_step is None:  # the first step of a run, or of a resumed one
            self._micro_step = self.state.global_step * args.gradient_accumulation_steps
        number, step = divmod(self._micro_step, args.micro_steps_per_rollout)
        self._micro_step += 1
        seed = args.seed + 100_003 * number
        if step == 0:
            assert isinstance(self.train_dataset, Dataset)
            prompts = self.train_dataset.select(self.prompt_rows(number))["prompt"]
            # Every process samples with a seed of its own.
            own_seed = seed * args.world_size + args.process_index
            self.rollout = self.worker.collect(list(prompts), own_seed)
            self._record_rollout(self.rollout, number)
        assert self.rollout is not None
        episodes = self.rollout.episodes
        epoch, within = divmod(step, args.num_mini_batches * args.gradient_accumulation_steps)
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(args.rollout_size, generator=generator)
        minibatches = order.view(args.num_mini_batches, args.gradient_accumulation_steps, -1)
        minibatch, part = divmod(within, args.gradient_accumulation_steps)
        rows = minibatches[minibatch]
        tokens = episodes.completion_mask[rows.flatten()].sum().float()
        return episodes.rows(rows[part]), float(self.total(tokens)) / args.world_size

    def training_step(
        self,
        model: nn.Module,
        inputs: Any,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Gradients of policy and value on one micro-batch; the sum of both losses, detached.

        Each loss is taken back through the model before the next role is switched on: gradient
        checkpointing recomputes activations with the adapter that is active then.
        """
        episodes, num_tokens = self.next_episodes()
        model.train()
        with self.roles.use(POLICY):
            policy_loss = self.policy_loss(model, episodes, num_tokens)
            self.accelerator.backward(policy_loss)
        with self.roles.use(VALUE):
            value_loss = self.value_loss(model, episodes, num_tokens)
            self.accelerator.backward(value_loss)
        return (policy_loss + value_loss).detach()

    def policy_loss(self, model: nn.Module, episodes: Episodes, num_tokens: float) -> Tensor:
        """Clipped surrogate less the entropy bonus, as this micro-batch's share."""
        logps, entropy = model(POLICY, *episodes.inputs(), self.args.temperature, episodes.trunk)
        policy = clipped_policy_loss(
            logps,
            episodes.old_logps,
            episodes.advantages,
            episodes.completion_mask,
            self.args.cliprange,
            num_tokens,
        )
        bonus = entropy_bonus(entropy, episodes.completion_mask, num_tokens)
        self._note("loss/policy_avg", policy.loss * self.args.gradient_accumulation_steps)
        self._note("policy/approxkl_avg", policy.approxkl)
        self._note("policy/clipfrac_avg", policy.clipfrac)
        self._note("val/ratio", policy.ratio)
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
        self._note("loss/value_avg", value.loss * self.args.gradient_accumulation_steps)
        self._note("val/clipfrac_avg", value.clipfrac)
        return self.args.vf_coef * value.loss

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[no-any-return]

    def _note(self, name: str, value: Tensor) -> None:
        self._logged[name].append(float(self.total(value.detach())) / self.args.world_size)

    def _record_rollout(self, rollout: Rollout, number: int) -> None:
        for name, value in rollout.metrics.items():
            self._note(name, torch.tensor(value, device=self.args.device))
        if not self.args.log_completions:
            return
        columns = {name: gather_object(column) for name, column in rollout.table.items()}
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir)) / "completions"
            folder.mkdir(parents=True, exist_ok=True)
            columns["rollout"] = [number] * len(columns["score"])
            pd.DataFrame(columns).to_parquet(folder / f"completions_{number:05d}.parquet")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what has been noted since the last time, averaged, with the episodes so far."""
        averages = {name: sum(values) / len(values) for name, values in self._logged.items()}
        self._logged.clear()
        if averages:
            steps = self.args.num_ppo_epochs * self.args.num_mini_batches
            rollouts = -(-self.state.global_step // steps)
            averages["episode"] = rollouts * self.args.rollout_size * self.args.world_size
        super().log({**logs, **averages}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy adapter, the value adapter beneath it, and the tokenizer.

        A checkpoint also holds the rollout in use, so that a resumed run goes on where it was.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            self.roles.save_role(POLICY, folder)
            self.roles.save_role(VALUE, folder / VALUE)
            assert isinstance(self.processing_class, PreTrainedTokenizerBase)
            self.processing_class.save_pretrained(folder)
        if _internal_call:
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "rollout": None if self.rollout is None else asdict(self.rollout),
                "scale": None if self.worker.scale is None else asdict(self.worker.scale),
            }
            torch.save(state, folder / f"{self.args.process_index}_{STATE_FILE}")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        # Private, yet the one place where the Trainer loads weights: its own version knows whole
        # models and PEFT models, not roles.
        folder = Path(resume_from_checkpoint)
        self.roles.load_role(POLICY, folder)
        self.roles.load_role(VALUE, folder / VALUE)
        file = folder / f"{self.args.process_index}_{STATE_FILE}"
        state = torch.load(file, map_location=self.args.device, weights_only=True)
        if state["scale"] is not None:
            self.worker.scale = RewardScale(**state["scale"])
        if state["rollout"] is not None:
            episodes = Episodes(**state["rollout"].pop("episodes"))
            self.rollout = Rollout(episodes, **state["rollout"])


def _refuse_sharding(args: PPOConfig) -> None:
    """Raise RecipeError under DeepSpeed and FSDP, whose steps and weights are not this trainer's.

    DeepSpeed steps the optimiser at every backward pass, and a PPO step has two; FSDP replaces the
    parameters that the roles switch, and sampling would wait for a process that has finished.
    """
    if (
        args.deepspeed
        or args.fsdp
        or args.distributed_state.distributed_type
        in (
            DistributedType.DEEPSPEED,
            DistributedType.FSDP,
        )
    ):
        raise RecipeError(
            "PPO does not run under DeepSpeed or FSDP. Use accelerate_configs/single.yaml or "
            "multi_gpu.yaml; a base too large for one GPU fits with `load_in_4bit: true`."
        )
