"""Load the user's reward functions and check what they return.

GRPO, PPO and the judges of an evaluation call a function in the same way and accept only one finite
number per completion. A trainer would learn from anything else without a warning.
"""

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.prompts import Prompt, completion_text, prompt_text

REWARD_MODEL = "reward_model"
"""The name that a reward model's scores are logged under."""
RawCompletion = str | Sequence[Mapping[str, str]]
"""A completion as TRL passes it: text or, in a conversation, the messages of one assistant turn."""
RewardFunc = Callable[..., Sequence[float]]
"""A reward function in TRL's form.

It is called with `prompts`, `completions` and the dataset's other columns, all of one length, and
returns one float per completion.
"""


def import_function(path: str) -> Callable[[list[str], list[str]], list[float]]:
    """Import the function that `path/to/file.py:name` names.

    It takes the texts of prompts and completions and returns one float per completion.
    """
    file, _, name = path.rpartition(":")
    if not file or not Path(file).is_file():
        raise RecipeError(
            f"`{path}` names no function: there is no file `{file or path}`. "
            "Write `path/to/file.py:function`."
        )
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise RecipeError(f"`{path}` names no function: {file} is not a Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise RecipeError(
            f"{file} cannot be imported: {type(error).__name__}: {error}. Check that "
            f"`python {file}` runs."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(
            f"{file} has no function `{name}`. It must take the prompts and the completions as "
            "two lists of strings and return a list of floats."
        )
    return function  # type: ignore[no-any-return]  # the user's code: its type is not known


def load_reward_func(path: str) -> RewardFunc:
    """Load the function that `path/to/file.py:name` names as a reward function in TRL's form."""
    function = import_function(path)

    def scores(prompts: Sequence[Prompt], completions: Sequence[RawCompletion], **_: Any) -> Any:
        return function(
            [prompt_text(p) for p in prompts], [completion_text(c) for c in completions]
        )

    scores.__name__ = path.rpartition(":")[2]  # the trainers log metrics under this name
    return scores


def checked(function: RewardFunc) -> Callable[..., list[float]]:
    """Wrap a reward function to raise RecipeError if it fails or returns no finite numbers.

    The wrapper has the function's name, under which the trainers log its scores.
    """
    name = function_name(function)

    def scores(
        prompts: Sequence[Prompt], completions: Sequence[RawCompletion], **columns: Any
    ) -> list[float]:
        try:
            values = function(prompts=prompts, completions=completions, **columns)
        except RecipeError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise RecipeError(
                f"The reward function `{name}` failed: {type(error).__name__}: {error}. It was "
                f"called with {len(completions)} prompts and completions, the first being "
                f"{_shown(prompts[0], completions[0])}."
            ) from error
        return _finite(name, values, prompts, completions)

    scores.__name__ = name
    return scores


def function_name(function: Callable[..., Any]) -> str:
    """Return the name that a function's metrics are logged under."""
    return str(getattr(function, "__name__", type(function).__name__))


def check_functions(names: Sequence[str], weights: Sequence[float] | None) -> None:
    """Raise RecipeError unless each reward function has a unique name and a weight."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise RecipeError(
            f"Two reward functions have one name: {', '.join(names)}. Each is logged under its "
            f"name: rename one `{repeated[0]}` (the reward model is `{REWARD_MODEL}`)."
        )
    if not names:
        raise RecipeError(
            "There is nothing to be rewarded for. Give `reward_model_path`, `reward_funcs`, or "
            "both."
        )
    if weights is not None and len(weights) != len(names):
        raise RecipeError(
            f"`reward_weights` has {len(weights)} weights, and there are {len(names)} reward "
            f"functions: {', '.join(names)}. Give one weight for each, in that order."
        )
    if weights is not None and not (any(weights) and all(map(isfinite, weights))):
        raise RecipeError(
            f"`reward_weights` is {list(weights)}, so every completion would get the same reward, "
            "or one that is not a number. Give finite weights, at least one of them not 0."
        )


def _finite(
    name: str, values: Any, prompts: Sequence[Prompt], completions: Sequence[RawCompletion]
) -> list[float]:
    try:
        listed = values.tolist() if hasattr(values, "tolist") else list(values)
    except TypeError:
        listed = None
    if not isinstance(listed, list):
        raise RecipeError(
            f"The reward function `{name}` returned {values!r} for {len(completions)} "
            "completions. It must return a list with one float for each, in their order."
        )
    if len(listed) != len(completions):
        raise RecipeError(
            f"The reward function `{name}` returned {len(listed)} values for {len(completions)} "
            "completions. It must return one float for each, in their order."
        )
    for value, prompt, completion in zip(listed, prompts, completions, strict=True):
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, Real) or not isfinite(number):
            raise RecipeError(
                f"The reward function `{name}` returned {number!r} for "
                f"{_shown(prompt, completion)}. It must return a finite number: anything else "
                "would be trained on as if it were one, or would turn every weight into NaN."
            )
    return [float(value) for value in listed]


def _shown(prompt: Prompt, completion: RawCompletion) -> str:
    text = completion_text(completion)
    return f"the completion {text[:80]!r} of the prompt {prompt_text(prompt)[-80:]!r}"
