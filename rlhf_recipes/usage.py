"""The text that `--help` and `--help-all` print: a stage's keys in groups, with their defaults."""

import dataclasses
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from enum import Enum
from pathlib import Path
from typing import Any

from rlhf_recipes.parsing import Key, recipe_keys

MOST_USED = (
    *("output_dir", "seed", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("lr_scheduler_type", "eval_strategy", "eval_steps", "save_steps", "save_total_limit"),
    *("logging_steps", "report_to", "bf16", "use_cpu", "push_to_hub", "hub_model_id"),
)
"""Keys of TrainingArguments that `--help` shows; `--help-all` shows all of them."""

TRAINING_ARGUMENTS = "TrainingArguments"
WIDTH = 88

Field = dataclasses.Field[Any]


def usage(dataclass_types: Sequence[type[Any]], every_key: bool) -> str:
    """Return the help text of a script, the keys of this package and of the method first.

    Args:
        every_key: Whether to show all keys of TrainingArguments, and all choices of each key.
    """
    keys = recipe_keys(dataclass_types)
    lines = [
        f"usage: {Path(sys.argv[0]).name} --config FILE [--key value ...]",
        "",
        "FILE is a flat YAML recipe. Each key below is a key of the recipe and a flag; flags win.",
    ]
    for title, fields in _groups(dataclass_types, keys, every_key):
        lines += ["", title]
        for field in fields:
            lines += _key_lines(keys[field.name], field, every_key)
    if not every_key and any(map(_trains, dataclass_types)):
        lines += ["", "--help-all shows every key of TrainingArguments."]
    return "\n".join(lines) + "\n"


def _groups(
    dataclass_types: Sequence[type[Any]], keys: Mapping[str, Key], every_key: bool
) -> Iterator[tuple[str, list[Field]]]:
    """Yield each group's title and fields; those inherited from TrainingArguments come last."""
    inherited: list[Field] = []
    for cls in dataclass_types:
        fields = [f for f in dataclasses.fields(cls) if f.init and keys[f.name].owner is cls]
        if _trains(cls):
            own = _defined_by_method(cls)
            inherited = [field for field in fields if field.name not in own]
            fields = [field for field in fields if field.name in own]
        yield f"{cls.__name__} ({cls.__module__.partition('.')[0]})", fields
    if inherited and every_key:
        yield "TrainingArguments (transformers)", inherited
    elif inherited:
        most_used = [field for field in inherited if field.name in MOST_USED]
        yield "TrainingArguments (transformers), the most used", most_used


def _trains(cls: type[Any]) -> bool:
    """Whether a class extends TrainingArguments, whose import would load torch."""
    return any(base.__name__ == TRAINING_ARGUMENTS for base in cls.__mro__)


def _defined_by_method(cls: type[Any]) -> set[str]:
    """Return the names of the fields that a class and its bases add to TrainingArguments."""
    names = [base.__name__ for base in cls.__mro__]
    extending = cls.__mro__[: names.index(TRAINING_ARGUMENTS)]
    return {name for base in extending for name in vars(base).get("__annotations__", {})}


def _key_lines(key: Key, field: Field, every_key: bool) -> list[str]:
    takes = "one of " + ", ".join(key.choices) if every_key and key.choices else key.expects
    line = f"--{key.name}  {takes}; {_default(field)}"
    text = " ".join(str(field.metadata.get("help", "")).split()).replace("%%", "%")
    return [
        *textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="      "),
        *textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      "),
    ]


def _default(field: Field) -> str:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default is MISSING:
        return "required"
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, bool | None):
        default = {True: "true", False: "false", None: "null"}[default]
    return f"default {default}"
