"""Parse recipe files and command lines into checked dataclasses; the arguments that stages share.

A recipe is one flat YAML file. Its values and those of flags go through the same parser, which
checks types and choices, so a key and the flag of the same name mean the same.
"""

import copy
import dataclasses
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.parsing import (
    Key,
    Parser,
    Setting,
    convert,
    read_settings,
    recipe_keys,
    unknown_key,
    wrong_value,
)
from rlhf_recipes.rules.values import value_problems
from rlhf_recipes.shared_flags import take_known
from rlhf_recipes.usage import usage

HELP = {"-h", "--help", "--help-all"}
NOT_IN_RESOLVED = {"plan", "overwrite", "hub_token"}  # two concern a single call, one is a secret


@dataclass
class RecipeArguments:
    """Arguments that every training stage adds to those of its trainer."""

    dataset_name: str = field(
        default="outputs/data",
        metadata={
            "help": "Preference data: the folder data/ that prepare_data.py writes, or a Hub id, "
            "folder or file, which is prepared on the fly."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Maximum number of training rows; the first ones are used."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Maximum number of validation rows; the first ones are used."},
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Path of a Jinja chat template, for a base that has none."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Arguments of the chat template, such as {enable_thinking: false} for Qwen3. "
            "The same in every stage: they are saved with the adapter's tokenizer."
        },
    )
    prefix_sharing: bool = field(
        default=True,
        metadata={
            "help": "Compute a prefix shared by rows of a batch once; false takes the stock path."
        },
    )
    plan: bool = field(
        default=False,
        metadata={"help": "Print what the stage would do, cost and write, and stop."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace a finished run once the new one has finished."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples"):
            samples = getattr(self, name)
            if samples is not None and samples < 1:
                raise ValueError(
                    f"`{name}` is {samples}, which leaves no data. "
                    "Give at least 1, or leave it out to use every row."
                )


@dataclass
class StartArguments:
    """The adapter that a policy of DPO or GRPO starts from; PPOConfig has the same key."""

    sft_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Adapter that the policy starts from, and the reference model with it, as "
            "sft.py writes it."
        },
    )


@dataclass
class RewardArguments:
    """How PPO and GRPO sample and score completions."""

    reward_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the reward adapter, as reward.py writes it, or any whole "
            "sequence-classification model with one score: its folder, or its Hub id `owner/name` "
            "or `owner/name@revision`. It is loaded apart, with its own tokenizer and template."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions in addition to the reward model, each "
            "`path/to/file.py:name`, called with the texts of prompts and completions."
        },
    )
    reward_precision: Literal["trained", "policy"] = field(
        default="trained",
        metadata={
            "help": "GRPO only: dtype and quantization of the reward model's base, as in its "
            "training or as the policy's; of a whole model, its own or the policy's. Where an "
            "adapter's are the policy's, as always in PPO, both share one base."
        },
    )
    merge_for_sampling: bool = field(
        default=True,
        metadata={
            "help": "Merge the adapter into the weights while sampling, so that a token costs what "
            "it costs the base. The original weights are kept meanwhile, which takes the memory "
            "of the adapted layers twice. Quantized weights are never merged."
        },
    )

    def __post_init__(self) -> None:
        if not (self.reward_model_path or self.reward_funcs):
            raise ValueError(
                "No reward is given. Give `reward_model_path`, the folder that reward.py writes, "
                "or `reward_funcs`, functions `path/to/file.py:name`."
            )


class ParsedRecipe(NamedTuple):
    """A recipe's dataclasses, and what its file and the command line set.

    A trainer may change its dataclass later; `settings` stay as they were written.
    """

    arguments: tuple[Any, ...]
    settings: dict[str, Any]


def parse_recipe(*dataclass_types: Any, argv: Sequence[str] | None = None) -> ParsedRecipe:
    """Parse and check a recipe from `--config FILE` and flags; flags win.

    Raises one RecipeError with all problems of the recipe file and of the command line.

    Args:
        *dataclass_types: Classes to build one instance of each; all field names are distinct.
        argv: The command line without the script's name; `sys.argv[1:]` if None.
    """
    keys = recipe_keys(dataclass_types)
    argv = take_known(
        sys.argv[1:] if argv is None else argv,
        {*keys, "config", "help", "help_all"},
        scripts=Path(sys.argv[0]).parent,
    )
    parser = Parser(
        dataclass_types, allow_abbrev=False, exit_on_error=False, conflict_handler="resolve"
    )
    if asked := HELP & set(argv):
        sys.stdout.write(usage(dataclass_types, every_key="--help-all" in asked))
        raise SystemExit(0)

    problems: list[str] = []
    settings: dict[str, Any] = {}
    broken: set[str] = set()
    for setting in read_settings(argv, problems):
        if setting.name not in keys and setting.name.removeprefix("no_") in keys:
            setting = _complement(setting)
        if setting.name not in keys:
            problems.append(f"{setting.location}: {unknown_key(setting.name, keys)}")
            continue
        key = keys[setting.name]
        try:
            settings[setting.name] = convert(parser, key, setting.value)
        except (ArgumentError, ValueError):
            broken.add(setting.name)
            problems.append(f"{setting.location}: {wrong_value(key, setting.value)}")

    instances = tuple(_build(cls, keys, settings, broken, problems) for cls in dataclass_types)
    if None not in instances:
        problems += value_problems(instances, settings)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n- ".join([f"The recipe has {count}:", *problems]))
    return ParsedRecipe(instances, settings)


def resolved_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a flat recipe whose values are safe for YAML and JSON.

    Parsing the recipe gives these settings again. `plan`, `overwrite` and `hub_token` are left out.
    """
    return {name: _plain(value) for name, value in settings.items() if name not in NOT_IN_RESOLVED}


def _complement(setting: Setting) -> Setting:
    """Turn the flag `--no_x` into `x: false`; a flag with a value is returned unchanged."""
    if setting.value is not True:
        return setting
    return setting._replace(name=setting.name.removeprefix("no_"), value="false")


def _build(
    cls: type[Any],
    keys: Mapping[str, Key],
    settings: dict[str, Any],
    broken: set[str],
    problems: list[str],
) -> Any | None:
    """Build an instance from its part of the settings; if it cannot be, add why to `problems`."""
    fields = [f for f in dataclasses.fields(cls) if f.init and keys[f.name].owner is cls]
    values = {f.name: settings[f.name] for f in fields if f.name in settings}
    set_or_broken = {*values, *broken}
    missing = [
        f
        for f in fields
        if f.default is MISSING and f.default_factory is MISSING and f.name not in set_or_broken
    ]
    problems += [f"`{f.name}` is missing. {f.metadata.get('help', '')}".rstrip() for f in missing]
    if missing or any(f.name in broken for f in fields):
        return None
    try:
        return cls(**copy.deepcopy(values))
    except (ValueError, TypeError, ArithmeticError, ImportError, OSError) as error:
        # On some mistakes the __post_init__ of other libraries fails with ZeroDivisionError etc.
        what = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            what = f"{cls.__name__} cannot be built from these values ({what})."
        problems.append(what)
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
