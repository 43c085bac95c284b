"""Recipe files and command lines -> checked dataclasses, and the arguments that stages share.

A recipe is one flat YAML file. A value in it means what the same text after the same-named flag
means: both go through one parser, and both are checked by type and by choice.
"""

import copy
import dataclasses
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from rlhf_recipes.ending import ended_by_a_sentence
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.parsing import (
    Parser,
    Setting,
    convert,
    read_settings,
    recipe_keys,
    unknown_key,
    wrong_value,
)
from rlhf_recipes.rules.values import value_problems

NOT_IN_RESOLVED = {"plan", "overwrite", "hub_token"}  # two are about one call, one is a secret


@dataclass
class RecipeArguments:
    """What every training stage needs beside its trainer's own arguments."""

    dataset_name: str = field(
        default="outputs/data",
        metadata={"help": "Folder of prepared preference data, as prepare_data.py writes it."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only the first so many training rows."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only the first so many validation rows."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "A Jinja file, for a base that has no chat template."}
    )
    prefix_sharing: bool = field(
        default=True,
        metadata={
            "help": "Compute what rows of a batch have in common once; false takes the stock path."
        },
    )
    plan: bool = field(
        default=False,
        metadata={"help": "Print what the stage would do, cost and produce, and stop."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the run folder even if its run is finished."}
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
class RewardArguments:
    """Where scores come from."""

    reward_model_path: str | None = field(
        default=None, metadata={"help": "Folder of the reward adapter, as reward.py writes it."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Functions that score beside the reward model, each `path/to/file.py:name`, "
            "called with the texts of prompts and completions."
        },
    )
    reward_precision: Literal["trained", "policy"] = field(
        default="trained",
        metadata={
            "help": "GRPO: hold the reward model's base, dtype and quantization, as in its "
            "training, or as the policy's. In PPO they share one."
        },
    )

    def __post_init__(self) -> None:
        if not (self.reward_model_path or self.reward_funcs):
            raise ValueError(
                "There is nothing to be rewarded for. Give `reward_model_path`, the folder that "
                "reward.py writes, or `reward_funcs`, functions `path/to/file.py:name`."
            )


def parse_recipe(*dataclass_types: Any, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One checked instance of each dataclass, from `--config FILE` and flags; flags win.

    All problems of the recipe and of the command line are gathered and raised as one RecipeError.

    Args:
        *dataclass_types: No two of them have a field of the same name.
        argv: The command line without the script's name; `sys.argv[1:]` if None.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    keys = recipe_keys(dataclass_types)
    parser = Parser(dataclass_types, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", metavar="FILE", help="Flat YAML recipe; flags win over it.")
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        raise SystemExit(0)

    problems: list[str] = []
    given: dict[str, Any] = {}
    broken: set[str] = set()
    for setting in read_settings(argv, problems):
        if setting.name not in keys and setting.name.removeprefix("no_") in keys:
            setting = _complement(setting)
        if setting.name not in keys:
            problems.append(f"{setting.place}: {unknown_key(setting.name, keys)}")
            continue
        key = keys[setting.name]
        try:
            given[setting.name] = convert(parser, key, setting.value)
        except (ArgumentError, ValueError):
            broken.add(setting.name)
            problems.append(f"{setting.place}: {wrong_value(key, setting.value)}")

    instances = [_build(cls, given, broken, problems) for cls in dataclass_types]
    if None not in instances:
        problems += value_problems(instances)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError("\n- ".join([f"The recipe has {count}:", *problems]))
    return tuple(instances)


def resolved_recipe(*instances: Any) -> dict[str, Any]:
    """The flat recipe that parses to these instances again; every value is safe for YAML.

    It holds what the user gave, and nothing that a trainer changed on an instance later. An
    instance built in code gives its fields that differ from their defaults. `plan`, `overwrite`
    and `hub_token` are never in it.
    """
    recipe: dict[str, Any] = {}
    for instance in instances:
        given = vars(instance).get("_given")
        recipe |= _changed_fields(instance) if given is None else given
    return {name: _plain(value) for name, value in recipe.items() if name not in NOT_IN_RESOLVED}


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; what the user can change ends it with a sentence and a status."""
    # One library's deprecations in another's code are nothing the user of a script can mend.
    warnings.filterwarnings("ignore", category=FutureWarning)
    with ended_by_a_sentence():
        main()


def _complement(setting: Setting) -> Setting:
    """`--no_x` as `x: false`; anything but a flag without a value is left as it is."""
    if setting.value is not True:
        return setting
    return setting._replace(name=setting.name.removeprefix("no_"), value="false")


def _build(
    cls: type[Any], given: dict[str, Any], broken: set[str], problems: list[str]
) -> Any | None:
    """An instance of what was given for it; None, and the reason in `problems`, if it cannot be."""
    fields = [f for f in dataclasses.fields(cls) if f.init]
    mine = {f.name: given[f.name] for f in fields if f.name in given}
    missing = [
        f
        for f in fields
        if f.default is MISSING and f.default_factory is MISSING and f.name not in {*mine, *broken}
    ]
    problems += [f"`{f.name}` is missing. {f.metadata.get('help', '')}".rstrip() for f in missing]
    if missing or any(f.name in broken for f in fields):
        return None
    try:
        instance = cls(**copy.deepcopy(mine))
    except (ValueError, TypeError, ArithmeticError, ImportError, OSError) as error:
        # __post_init__ of other libraries meets some mistakes with a division by zero and the like.
        what = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            what = f"{cls.__name__} cannot be built from these values ({what})."
        problems.append(what)
        return None
    vars(instance)["_given"] = mine
    return instance


def _changed_fields(instance: Any) -> dict[str, Any]:
    return {
        f.name: getattr(instance, f.name)
        for f in dataclasses.fields(instance)
        if f.init
        and getattr(instance, f.name)
        != (f.default if f.default_factory is MISSING else f.default_factory())
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
