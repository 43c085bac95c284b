"""The type of a rule, the usual kinds of rules, and names for the stages that a rule is for.

The kinds are named for what a value must be: `at_least`, `between`, `above_zero`, `one_of`; a key
that a stage ignores is `unused`. Their `why` completes the sentence "`key` is VALUE, ..." and ends
with a full stop. A value of None is never refused by `at_least`, `between` and `above_zero`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

ALL = ("sft", "reward", "dpo", "grpo", "ppo")
TRL = ("sft", "reward", "dpo", "grpo")
OFFLINE = ("sft", "reward", "dpo")
ONLINE = ("grpo", "ppo")
POLICIES = ("dpo", "grpo", "ppo")
SFT, REWARD, DPO, GRPO, PPO = (("sft",), ("reward",), ("dpo",), ("grpo",), ("ppo",))

STAGES = {
    "SFTConfig": "sft",
    "RewardConfig": "reward",
    "DPOConfig": "dpo",
    "GRPOConfig": "grpo",
    "PPOConfig": "ppo",
}
"""Stage of each class of trainer arguments."""


class Rule(NamedTuple):
    """A condition under which a recipe of some stages is refused, and the message for the user.

    Args:
        is_broken: Called with the values of the recipe as attributes. `given_keys` is the set of
            the keys that the user wrote.
        message: What was found, why it cannot work, what to do. `{key}` stands for a value of the
            recipe, `{stage}` for the stage.
    """

    stages: tuple[str, ...]
    is_broken: Callable[[Any], bool]
    message: str


def at_least(key: str, minimum: float, stages: tuple[str, ...], why: str) -> Rule:
    """Make the rule that a number is not below `minimum`."""

    def is_broken(values: Any) -> bool:
        value = getattr(values, key)
        return value is not None and not value >= minimum

    return Rule(stages, is_broken, f"`{key}` is {{{key}}}, {why} Give at least {minimum}.")


def between(key: str, low: float, high: float, stages: tuple[str, ...], why: str) -> Rule:
    """Make the rule that a number is in the closed interval [low, high]."""

    def is_broken(values: Any) -> bool:
        value = getattr(values, key)
        return value is not None and not low <= value <= high

    message = f"`{key}` is {{{key}}}, {why} Give a number from {low} to {high}."
    return Rule(stages, is_broken, message)


def above_zero(key: str, stages: tuple[str, ...], why: str) -> Rule:
    """Make the rule that a number is positive."""

    def is_broken(values: Any) -> bool:
        value = getattr(values, key)
        return value is not None and not value > 0

    return Rule(stages, is_broken, f"`{key}` is {{{key}}}, {why} Give a number above 0.")


def one_of(key: str, choices: Sequence[str], stages: tuple[str, ...]) -> Rule:
    """Make the rule that a word, or every word of a list, is one that the trainer knows."""

    def is_broken(values: Any) -> bool:
        value = getattr(values, key)
        return not set(value if isinstance(value, list) else [value]) <= set(choices)

    names = ", ".join(choices)
    message = f"`{key}` is {{{key}}}, which is not known. Give one of {names}."
    return Rule(stages, is_broken, message)


def unused(key: str, stages: tuple[str, ...], instead: str, harmless: tuple[Any, ...] = ()) -> Rule:
    """Make the rule that the user does not set a key that the stage ignores.

    Args:
        instead: What to do instead, a sentence.
        harmless: Values that ask for what happens anyway.
    """

    def is_broken(values: Any) -> bool:
        return key in values.given_keys and getattr(values, key) not in harmless

    message = f"`{key}` is {{{key}}}, and the stage {{stage}} does not use it. {instead}"
    return Rule(stages, is_broken, message)


def broken_rule_messages(
    rules: Sequence[Rule], instances: Sequence[Any], keys: Collection[str] = ()
) -> Iterator[str]:
    """Yield the message of every rule that a training recipe breaks.

    Args:
        instances: The dataclasses of the recipe. Rules are for the recipes of training stages only:
            any other recipe breaks none.
        keys: The keys that the recipe itself sets.
    """
    stage = next((STAGES[n] for i in instances if (n := type(i).__name__) in STAGES), None)
    values: dict[str, Any] = {}
    for instance in instances:
        values |= {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    if stage is None or not values.keys() >= {"prefix_sharing", "use_peft"}:
        return  # an evaluation, data preparation, or only some of a recipe's dataclasses
    for rule in rules:
        if stage in rule.stages and rule.is_broken(SimpleNamespace(**values, given_keys={*keys})):
            yield rule.message.format(stage=stage, **values)
