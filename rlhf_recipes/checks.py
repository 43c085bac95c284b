"""Refuse at the start what cannot work: one table of checks, for `--plan` and for the run.

A check is a function of what a stage was given, and raises RecipeError. Those of one group run
together and their sentences are shown together; a group runs once the groups before it found
nothing, so that a check may use what they made sure of. No check loads weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf_recipes.arguments import RecipeArguments, RewardArguments
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models import open_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

ALL = ("reward", "dpo", "grpo", "ppo")


@dataclass(frozen=True)
class Inputs:
    """What a training stage is given.

    Args:
        stage: `reward`, `dpo`, `grpo` or `ppo`.
        training: The stage's trainer arguments: RewardConfig, DPOConfig, GRPOConfig or PPOConfig.
        dataset: Splits train and validation, as `load_prepared` gives them.
        reward: Where GRPO and PPO get their scores.
    """

    stage: str
    recipe: RecipeArguments
    training: Any
    model: ModelConfig
    dataset: "Mapping[str, Dataset]"
    reward: RewardArguments | None = None

    @cached_property
    def base(self) -> str:
        """Name of the base model."""
        return str(self.model.model_name_or_path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, opened once for all checks."""
        return open_tokenizer(self.base, self.recipe.chat_template, self.model.model_revision)


Check = Callable[[Inputs], None]


def check_training(inputs: Inputs) -> None:
    """Raise RecipeError, with all problems of a group at once, for what cannot work."""
    for group in GROUPS:
        run_checks(check for check, stages in group if inputs.stage in stages)(inputs)


def run_checks(checks: Iterable[Callable[[Any], None]]) -> Callable[[Any], None]:
    """Join checks into one that runs them all, and raises what they found together."""

    def check_all(subject: Any) -> None:
        problems = []
        for check in checks:
            try:
                check(subject)
            except RecipeError as error:
                problems.append(str(error))
        if len(problems) == 1:
            raise RecipeError(problems[0])
        if problems:
            raise RecipeError("\n- ".join([f"There are {len(problems)} problems:", *problems]))

    return check_all


def check_adapters(inputs: Inputs) -> None:
    """Refuse full fine-tuning: a run folder is an adapter to every later stage."""
    if not inputs.model.use_peft:
        raise RecipeError(
            "`use_peft` is false, and every stage trains LoRA adapters on a frozen base: the later "
            "stages and the evaluation open adapters only. Set `use_peft: true`."
        )


def check_tokenizer_opens(inputs: Inputs) -> None:
    """Refuse a base without a readable tokenizer, and a chat template that cannot be read."""
    _ = inputs.tokenizer


GROUPS: tuple[tuple[tuple[Check, tuple[str, ...]], ...], ...] = (
    ((check_adapters, ALL),),  # what the recipe says
    ((check_tokenizer_opens, ALL),),  # the files that it names
    (),  # the data, read with these files
)
