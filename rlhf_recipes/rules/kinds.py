"""A rule that the values of a recipe must keep, and the usual kinds of rules."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ALL = ("reward", "dpo", "grpo", "ppo")
TRL = ("reward", "dpo", "grpo")
PAIRS = ("reward", "dpo")
ONLINE = ("grpo", "ppo")
REWARD, DPO, GRPO, PPO = (("reward",), ("dpo",), ("grpo",), ("ppo",))


class Rule(NamedTuple):
    """What is wrong with the values of a recipe, and the sentence that says so.

    The sentence is a format of the recipe's values by key.
    """

    stages: tuple[str, ...]
    wrong: Callable[[Any], bool]
    sentence: str


def below(name: str, least: float, stages: tuple[str, ...], why: str) -> Rule:
    """A rule for a number below `least`; None stands for no number."""

    def wrong(values: Any) -> bool:
        value = getattr(values, name)
        return value is not None and not value >= least

    sentence = f"`{name}` is {{{name}}}, {why} Give at least {least}."
    return Rule(stages, wrong, sentence)


def outside(name: str, low: float, high: float, stages: tuple[str, ...], why: str) -> Rule:
    """A rule for a number outside of [low, high]."""

    def wrong(values: Any) -> bool:
        value = getattr(values, name)
        return value is not None and not low <= value <= high

    sentence = f"`{name}` is {{{name}}}, {why} Give a number from {low} to {high}."
    return Rule(stages, wrong, sentence)


def not_above_zero(name: str, stages: tuple[str, ...], why: str) -> Rule:
    """A rule for a number that must be above 0."""

    def wrong(values: Any) -> bool:
        value = getattr(values, name)
        return value is not None and not value > 0

    return Rule(stages, wrong, f"`{name}` is {{{name}}}, {why} Give a number above 0.")


def unknown(name: str, choices: Sequence[str], stages: tuple[str, ...]) -> Rule:
    """A rule for a word, or a list of words, that the trainer does not know."""

    def wrong(values: Any) -> bool:
        value = getattr(values, name)
        return not set(value if isinstance(value, list) else [value]) <= set(choices)

    known = ", ".join(choices)
    return Rule(stages, wrong, f"`{name}` is {{{name}}}, which is not known. Give one of {known}.")


def unread(
    name: str, stages: tuple[str, ...], instead: str, harmless: tuple[Any, ...] = ()
) -> Rule:
    """A rule for a key that nothing in the stage reads; the `harmless` values ask for no more."""

    def wrong(values: Any) -> bool:
        return name in values.keys and getattr(values, name) not in harmless

    sentence = f"`{name}` is {{{name}}}, and the stage {{stage}} does not look at it. {instead}"
    return Rule(stages, wrong, sentence)
