"""Open the inputs of a training stage, each once for the checks, the plan and the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf_recipes.arguments import (
    RecipeArguments,
    RewardArguments,
    StartArguments,
    resolved_recipe,
)
from rlhf_recipes.models.adapters import CONFIG, Adapter, read_adapter
from rlhf_recipes.models.architectures import meta_model
from rlhf_recipes.models.classifiers import (
    Classifier,
    RewardSource,
    is_hub_id,
    read_reward_model,
)
from rlhf_recipes.models.loading import Base, Precision, open_tokenizer
from rlhf_recipes.preferences import split_off, unique_prompts
from rlhf_recipes.preferences.truncation import Rows, completion_rows, pair_rows, prompt_rows
from rlhf_recipes.reward_functions import RewardFunc, load_reward_func
from rlhf_recipes.rules.kinds import OFFLINE
from rlhf_recipes.runs.fingerprints import run_inputs
from rlhf_recipes.runs.run_folder import PROCESSES
from rlhf_recipes.sharding import shards_weights
from rlhf_recipes.steps import micro_batches, optimizer_steps

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Inputs:
    """The arguments and data of a training stage, and the files they name, opened on first use.

    Args:
        stage: `sft`, `reward`, `dpo`, `grpo` or `ppo`.
        training: The stage's trainer arguments: an SFTConfig, RewardConfig and so on.
        dataset: Splits train and validation, as `load_prepared` returns them.
        reward: The reward model and reward functions of GRPO and PPO.
        starting: The adapter that DPO's or GRPO's policy starts from; PPO's is in `training`.
        settings: What the recipe and the command line set, as `parse_recipe` returns it.
    """

    stage: str
    recipe: RecipeArguments
    training: Any
    model: ModelConfig
    dataset: "Mapping[str, Dataset]"
    reward: RewardArguments | None = None
    starting: StartArguments | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolved(self) -> dict[str, Any]:
        """The flat recipe that reproduces the run."""
        return resolved_recipe(self.settings)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each input that the recipe names, and the number of processes."""
        instances = (self.recipe, self.training, self.model, self.reward, self.starting)
        values = [vars(instance) for instance in instances if instance is not None]
        paths = {name: value for part in values for name, value in part.items()}
        return run_inputs(paths) | {PROCESSES: str(self.training.world_size)}

    @cached_property
    def base(self) -> str:
        """Name or path of the base model."""
        return str(self.model.model_name_or_path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, with the recipe's chat template and its arguments, if given."""
        recipe = self.recipe
        return open_tokenizer(
            self.base,
            recipe.chat_template,
            self.model.model_revision,
            recipe.chat_template_kwargs,
        )

    @cached_property
    def reward_model(self) -> RewardSource | None:
        """The reward model; None if there is none, or if a plan comes before it was trained."""
        source = self.reward.reward_model_path if self.reward else None
        if source is None or (self.recipe.plan and not _exists(source)):
            return None
        return read_reward_model(source)

    @property
    def reward_adapter(self) -> Adapter | None:
        """The reward model if it is an adapter."""
        return self.reward_model if isinstance(self.reward_model, Adapter) else None

    @property
    def reward_classifier(self) -> Classifier | None:
        """The reward model if it is a whole classifier."""
        return self.reward_model if isinstance(self.reward_model, Classifier) else None

    @property
    def reward_precision(self) -> Precision:
        """Dtype and quantization of the reward model or its base.

        An adapter's are the policy's in PPO, which shares the base. In GRPO they are those that
        `reward_precision` asks for. A whole classifier has its own in PPO.
        """
        policy = Precision.read(vars(self.model))
        if self.reward is None or self.reward_model is None:
            return policy
        if self.stage == "ppo":
            return self.reward_classifier.precision if self.reward_classifier else policy
        if self.reward.reward_precision == "policy":
            return policy
        return self.reward_model.precision or policy

    @property
    def reward_shares_base(self) -> bool:
        """Whether the reward model is a role on the policy's base.

        An adapter always is in PPO. In GRPO it is where base and precision are the policy's and
        every process holds the whole base; else it has a base of its own. Before it is trained, it
        is taken to be like the policy. A whole classifier never is.
        """
        if self.reward_classifier is not None:
            return False
        if self.stage == "ppo" or self.reward_adapter is None:
            return not shards_weights(self.training)
        same = self.reward_adapter.base.is_same(Base.of(self.model))
        as_policy = self.reward_precision == Precision.read(vars(self.model))
        return same and as_policy and not shards_weights(self.training)

    @property
    def start_path(self) -> str | None:
        """Folder of the adapter that the policy starts from, if there is one."""
        path: str | None = getattr(self.starting or self.training, "sft_model_path", None)
        return path

    @cached_property
    def start(self) -> Adapter | None:
        """The adapter that the policy starts from; None if a plan comes before it was trained."""
        folder = self.start_path
        if folder is None or (self.recipe.plan and not Path(folder, CONFIG).is_file()):
            return None
        return read_adapter(folder)

    @property
    def has_reference_adapter(self) -> bool:
        """Whether the reference is a frozen copy of the start. GRPO with `beta` 0 has none."""
        unused = self.stage == "grpo" and self.training.beta == 0
        return self.start_path is not None and not unused

    @cached_property
    def reward_funcs(self) -> list[RewardFunc]:
        """The user's reward functions."""
        paths = self.reward.reward_funcs if self.reward else None
        return [load_reward_func(path) for path in paths or ()]

    @cached_property
    def prompts(self) -> "tuple[Dataset, Dataset | None]":
        """Prompts that GRPO and PPO train on, and those that PPO evaluates on during training.

        Both come from the training split: evaluate.py alone uses the validation split.
        """
        prompts = unique_prompts(self.dataset["train"])
        if self.stage == "ppo" and self.training.eval_strategy != "no":
            return split_off(prompts, self.training.num_eval_prompts)
        return prompts, None

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Counts and indices of the rows of each split that the stage uses."""
        stage, tokenizer, training = self.stage, self.tokenizer, self.training
        if stage in OFFLINE:
            splits = {split: self.dataset[split] for split in ("train", "validation")}
            if stage == "sft":
                return {
                    s: completion_rows(s, rows, tokenizer, training) for s, rows in splits.items()
                }
            return {s: pair_rows(stage, s, rows, tokenizer, training) for s, rows in splits.items()}
        train, held_out = self.prompts
        splits = {"train": train} | ({"evaluation": held_out} if held_out is not None else {})
        return {
            split: prompt_rows(prompts["prompt"], tokenizer, training.max_completion_length)
            for split, prompts in splits.items()
        }

    @property
    def epoch(self) -> int:
        """Micro-batches of one process in one epoch."""
        return micro_batches(self.stage, self.rows["train"].used, self.training)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return optimizer_steps(self.stage, self.epoch, self.training)

    @cached_property
    def language_model(self) -> PreTrainedModel:
        """The base on the meta device, without weights."""
        return meta_model(Base.of(self.model))


def _exists(source: str) -> bool:
    """Return whether a reward model is in its folder already, or on the Hub."""
    return any(Path(source, name).is_file() for name in (CONFIG, "config.json")) or (
        is_hub_id(source)
    )
