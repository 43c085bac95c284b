"""Read single settings from a recipe file or a command line, and check them against their fields.

`arguments` parses whole recipes with it and raises all problems at once.
"""

import dataclasses
import difflib
import json
import re
import types
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

RENAMED = {
    "batch_size": "per_device_train_batch_size",
    "clip_range": "cliprange",
    "clip_ratio": "cliprange",
    "data_subset_size": "max_train_samples",
    "dpo_beta": "beta",
    "group_size": "num_generations",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "num_epochs": "num_train_epochs",
    "overwrite_output_dir": "overwrite",
    "response_length": "max_completion_length",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps",  # below 1 it is a ratio
}
"""Keys of older releases and of other PPO code, for which the nearest spelling is another key."""

MINIMUM = {
    "learning_rate": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 1,
    "max_completion_length": 1,
    "num_generations": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 1,
    "lora_r": 1,
    "temperature": 0,
}
"""Least values; lower ones would raise ZeroDivisionError or fail after the model is loaded."""

IN_PLACE_OF_TRL = {"chat_template_kwargs"}
"""Keys of this package that GRPOConfig has too. Its own field stays null; every stage has ours."""

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 20
PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")
}


class Setting(NamedTuple):
    """The value that the user wrote for one key.

    Args:
        value: Text, a list of texts, a mapping, None for null, or True for a flag without a value.
        location: File and line, or flag, with the value, for messages.
    """

    name: str
    value: Any
    location: str


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that `1e-5` is a number, inside mappings too."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_settings(argv: Sequence[str], problems: list[str]) -> Iterator[Setting]:
    """Yield the settings of the recipe file, then those of the command line.

    Args:
        problems: Gets a sentence for each part that cannot be read.
    """
    flags = []
    for flag, *values in group_flags(argv):
        location = f"`{' '.join([flag, *values])}`"
        name, (_, equals, text) = flag_name(flag), flag.partition("=")
        values = [text, *values] if equals else values
        if not flag.startswith("--"):
            problems.append(f"{location}: no flag comes before it. Name a recipe with `--config`.")
        elif name != "config":
            value = values if len(values) > 1 else values[0] if values else True
            flags.append(Setting(name, value, location))
        elif len(values) != 1:
            problems.append(f"{location}: takes one recipe file.")
        else:
            yield from _recipe_settings(Path(values[0]), problems)
    yield from flags


def group_flags(argv: Sequence[str]) -> list[list[str]]:
    """Group a command line into flags, each with the values that follow it."""
    groups: list[list[str]] = []
    for token in argv:
        if token.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(token)
    return groups


def flag_name(flag: str) -> str:
    """Return the name of the key that a flag, with or without `=value`, sets."""
    return flag.removeprefix("--").partition("=")[0].replace("-", "_")


def _recipe_settings(path: Path, problems: list[str]) -> Iterator[Setting]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        _check_yaml(text)
        root = yaml.compose(text, Loader=_Loader)
    except OSError as error:
        problems.append(f"`--config {path}`: cannot be read ({error.strerror}).")
        return
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not YAML ({' '.join(str(error).split())}).")
        return
    except ValueError as error:
        problems.append(f"{path}: {error}.")
        return
    if root is not None and not isinstance(root, yaml.MappingNode):
        problems.append(f"{path}: is not a recipe, which has lines of the form `name: value`.")
        return
    seen: dict[str, int] = {}
    for key_node, node in root.value if root is not None else ():
        name, line = str(key_node.value), key_node.start_mark.line + 1
        try:
            value = _node_value(node)
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{path} line {line}, `{name}`: {' '.join(str(error).split())}.")
            continue
        location = f"{path} line {line}, `{name}: {_shown('null' if value is None else value)}`"
        if name in seen:
            problems.append(f"{location}: `{name}` is already given in line {seen[name]}.")
        seen.setdefault(name, line)
        yield Setting(name, value, location)


def _check_yaml(text: str) -> None:
    """Raise ValueError for YAML that is too long or deep, has aliases, or has special types.

    Checks the stream of parser events, whose length is that of the text. Aliases are refused as
    aliases of aliases grow exponentially when they are expanded.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"is longer than {MAX_CHARACTERS:,} characters")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(
                f"line {line}: `*{event.anchor}` is an alias, which a recipe cannot have: write "
                "the value itself"
            )
        tag = getattr(event, "tag", None)
        if tag is not None and tag not in PLAIN_TAGS:
            raise ValueError(f"line {line}: `{tag}` is not a type of recipe values")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: more than {MAX_DEPTH} nested levels")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def _node_value(node: yaml.Node) -> Any:
    """Return the value of a node: a scalar's text as written (`no` stays `no`), list or mapping."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if isinstance(node, yaml.SequenceNode):
        # Lists hold plain values. Nested ones become text, which fits no field.
        return [str(_node_value(item)) for item in node.value]
    return _Loader("").construct_document(node)


class Key(NamedTuple):
    """The values that a dataclass field takes.

    Args:
        owner: The dataclass; where two have the field, the first of them.
        kinds: Types without their arguments: (list, NoneType) for `list[str] | None`.
        expects: The values in words.
    """

    name: str
    owner: type[Any]
    kinds: tuple[Any, ...]
    choices: tuple[str, ...]
    expects: str


class Parser(HfArgumentParser):
    """Argument parser that converts one value at a time and raises instead of printing usage."""

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Add a flag, which is never required: `arguments` reports missing keys."""
        options.pop("required", None)
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ArgumentError where argparse would print its usage and exit."""
        raise ArgumentError(None, message)


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping (JSON, if in a flag) or the name of a JSON file",
    type(None): "null",
}


def recipe_keys(dataclass_types: Sequence[type[Any]]) -> dict[str, Key]:
    """Return the keys of a recipe of these dataclasses, by name."""
    keys: dict[str, Key] = {}
    for cls in dataclass_types:
        hints = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.init:
                assert f.name not in keys.keys() - IN_PLACE_OF_TRL, (
                    f"two dataclasses have a field `{f.name}`"
                )
                keys.setdefault(f.name, _key(cls, f, hints[f.name]))
    return keys


def _key(owner: type[Any], f: dataclasses.Field[Any], hint: Any) -> Key:
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = tuple(get_origin(member) or member for member in members)
    choices = [str(choice) for choice in f.metadata.get("choices", ())]
    words = []
    for member, kind in zip(members, kinds, strict=True):
        if kind is Literal:
            choices += [str(choice) for choice in get_args(member)]
        elif isinstance(kind, type) and issubclass(kind, Enum):
            choices += [str(choice.value) for choice in kind]
        elif kind is list:
            words.append(f"a list of {getattr(get_args(member)[0], '__name__', member)}")
        elif not (kind is str and (choices or dict in kinds)):
            words.append(_WORDS.get(kind, str(kind)))
    if choices:
        shown = choices if len(choices) <= 12 else [*choices[:6], "... (--help-all lists them)"]
        words.insert(0, "one of " + ", ".join(shown))
    least = f", at least {MINIMUM[f.name]}" if f.name in MINIMUM else ""
    return Key(f.name, owner, kinds, tuple(choices), " or ".join(words) + least)


def convert(parser: Parser, key: Key, value: Any) -> Any:
    """Convert a value to its key's type; raise ValueError or ArgumentError if it does not fit."""
    kinds = set(key.kinds)
    if isinstance(value, str):
        value = _structured(kinds, value)
    if value is None or isinstance(value, dict | list):
        if type(value) not in kinds:
            raise ValueError
        if not value or isinstance(value, dict):
            return value
    if isinstance(value, list) and {str, type(None)} <= kinds:
        return value  # HfArgumentParser reads such a field as text
    namespace, rest = parser.parse_known_args(_flag(key, value))
    if rest:
        raise ValueError
    converted = getattr(namespace, key.name)
    if key.name in MINIMUM and not converted >= MINIMUM[key.name]:
        raise ValueError
    return converted


def _flag(key: Key, value: str | list[str] | Literal[True]) -> list[str]:
    if isinstance(value, list):
        return [f"--{key.name}", *value]
    if value is True:
        return [f"--{key.name}=true" if bool in key.kinds else f"--{key.name}"]
    return [f"--{key.name}={value}"]


def _structured(kinds: set[Any], text: str) -> str | dict[str, Any] | None:
    """Return text unchanged, unless it stands for null or its key takes a mapping in JSON."""
    # For a key that takes text, "none" is a value, as in `report_to`.
    if text.lower() in ("none", "null") and type(None) in kinds and {dict, str} & kinds != {str}:
        return None
    if dict not in kinds or (str in kinds and Path(text).is_file()):
        return text
    mapping = json.loads(text)
    if not isinstance(mapping, dict):
        raise ValueError
    return mapping


def wrong_value(key: Key, value: Any) -> str:
    """Return the end of a sentence on a value that does not fit its key."""
    return f"takes {key.expects}.{_suggestion(str(value), key.choices)}"


def unknown_key(name: str, keys: dict[str, Key]) -> str:
    """Return the end of a sentence on a name that is not a key."""
    successor = RENAMED.get(name, name)
    return f"there is no such key.{_suggestion(successor if successor in keys else name, keys)}"


def _suggestion(word: str, words: Iterable[str]) -> str:
    """Suggest the first of the words that starts with this one, else the closest in spelling."""
    near = [w for w in words if word and w.startswith(word)] or difflib.get_close_matches(
        word, words, n=1
    )
    return f" Did you mean `{near[0]}`?" if near else ""
