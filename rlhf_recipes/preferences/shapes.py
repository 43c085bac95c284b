"""A preference pair, the reasons why a row is not one, and keys that tell prompts apart."""

import unicodedata
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from rlhf_recipes.prompts import Messages

Text = str | Messages

Reason = Literal[
    "empty",
    "identical",
    "no_common_prompt",
    "broken_roles",
    "no_prompt",
    "prompt_differs",
    "not_text",
    "no_preference",
    "too_long",
    "prompt_in_train",
]

REASONS: dict[Reason, str] = {
    "empty": "the prompt, one of its turns, or a completion has no text",
    "identical": "chosen and rejected are the same text",
    "no_common_prompt": "chosen and rejected do not have the same prompt",
    "broken_roles": "the turns do not alternate between user and assistant, ending with assistant",
    "no_prompt": "the prompt is missing, and the completions do not contain one",
    "prompt_differs": "the prompt or system column differs from the turns before the completion",
    "not_text": "a turn is not text, or more than text: tool calls, reasoning, images, numbers, "
    "lists, half a character (a lone surrogate)",
    "no_preference": "the row prefers neither completion",
    "too_long": "the prompt plus the longer completion exceeds max_length",
    "prompt_in_train": "a validation row whose first user turn is also in a training row",
}
"""The meaning of each reason for which a row is dropped."""

REMEDIES: dict[Reason, str] = {
    "no_common_prompt": "Put the prompt in a column named `prompt`.",
    "broken_roles": "Write each row as turns that alternate between user and assistant.",
    "no_prompt": "Fill in the prompt, or give the rows without one as a separate dataset.",
    "prompt_differs": "If that column is not the prompt, drop it: `columns: {prompt: null}`.",
    "not_text": "Write numbers as text, and remove from the turns what the model should not see.",
    "too_long": "Raise `max_length`.",
    "prompt_in_train": "Set `dataset_test_split` to null to hold out training pairs instead. "
    "Make an instruction that is in every row a system message.",
}
"""Remedy for each reason that a user can do something about."""


class Lengths(NamedTuple):
    """Lengths of a prompt and its two completions, in the unit of `max_length`."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def longest(self) -> int:
        """Length of the prompt plus the longer completion, which `max_length` limits."""
        return self.prompt + max(self.chosen, self.rejected)


NOT_MEASURED = Lengths(0, 0, 0)


@dataclass
class Pair:
    """A prompt with a chosen and a rejected completion, all messages or all plain text.

    Args:
        turns: Number of user turns in the prompt; 1 for plain text.
        source: Name of the subset of the dataset.
        location: File and line of the row.
        cut: Whether the row had no prompt, so that the common beginning of its plain-text
            completions was cut off as the prompt.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    turns: int
    source: str
    location: str
    lengths: Lengths = NOT_MEASURED
    cut: bool = False

    @cached_property
    def prompt_key(self) -> Hashable:
        """Key that is equal for equal prompts."""
        return prompt_key(self.prompt)

    @cached_property
    def first_turn_key(self) -> str:
        """Key of the prompt's first user turn; pairs with the same key stay in one split."""
        return first_turn_key(self.prompt)

    def as_row(self) -> dict[str, object]:
        """Return the pair with the columns of a prepared file."""
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "source": self.source,
            "turns": self.turns,
        }


class UnusableRow(ValueError):
    """Raised for a row that cannot be used, with the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


def prompt_key(prompt: Text) -> Hashable:
    """Return a key that is equal for equal prompts, leading and trailing spaces ignored."""
    if isinstance(prompt, str):
        return prompt.strip()
    return tuple([(message["role"], message["content"].strip()) for message in prompt])


def first_turn(prompt: Text) -> str:
    """Return the text of the first user turn; plain text is one turn."""
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in prompt if m["role"] == "user"), "")


def first_turn_key(prompt: Text) -> str:
    """Return a key of the first user turn that ignores its case, spaces and Unicode form.

    Conversations that begin with the same turn often continue alike. So a prompt counts as seen in
    training if its first user turn is.
    """
    turn = first_turn(prompt)
    if turn.isascii():  # ASCII has a single Unicode form
        return " ".join(turn.lower().split())
    folded = unicodedata.normalize("NFKC", turn).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())
