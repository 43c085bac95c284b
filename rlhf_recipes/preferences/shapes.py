"""What a preference pair is, why a row may not be one, and its texts for people to read."""

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
    "empty": "the prompt, one of its turns, or an answer has no text",
    "identical": "chosen and rejected are the same answer",
    "no_common_prompt": "chosen and rejected do not answer the same prompt",
    "broken_roles": "the turns do not alternate from user to assistant and end with an answer",
    "no_prompt": "the prompt is missing, and the answers do not hold one",
    "prompt_differs": "the prompt or system column differs from the answers' own first turns",
    "not_text": "a turn is not text, or more than text: tool calls, reasoning, images, numbers, "
    "lists, half a character (a lone surrogate)",
    "no_preference": "the row prefers neither answer",
    "too_long": "the prompt with its longer answer is over max_length",
    "prompt_in_train": "a held-out row whose first user turn is also in a training row",
}

REMEDIES: dict[Reason, str] = {
    "no_common_prompt": "Give the prompt a column of its own, called `prompt`.",
    "broken_roles": "Write each row as turns that alternate from user to assistant.",
    "no_prompt": "Fill the prompt in, or give the rows that have none as a dataset of their own.",
    "prompt_differs": "If that column is not the prompt, leave it out: `columns: {prompt: null}`.",
    "not_text": "Write numbers as text, and remove from the turns what the model should not see.",
    "too_long": "Raise `max_length`.",
    "prompt_in_train": "Set `dataset_test_split` to null to hold out training prompts instead, "
    "and make an instruction that stands in every row a system message.",
}
"""What to do if rows are left out for a reason, where something can be done."""


class Lengths(NamedTuple):
    """Sizes of a prompt and its two answers, in the unit that `max_length` is given in."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def longest(self) -> int:
        """The prompt with the longer answer: what `max_length` is a limit of."""
        return self.prompt + max(self.chosen, self.rejected)


NOT_MEASURED = Lengths(0, 0, 0)


@dataclass
class Pair:
    """Two answers to one prompt, messages or plain text, of which the first was preferred.

    `turns` counts the user's turns in the prompt, 1 for plain text. `place` is where the row
    stands in the dataset as it was found. `cut` says that the prompt is what plain answers have in
    common, for want of a prompt of its own.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    turns: int
    source: str
    place: str
    lengths: Lengths = NOT_MEASURED
    cut: bool = False

    @cached_property
    def first_turn_key(self) -> str:
        """The key of the prompt's first user turn: pairs that share it stay in one split."""
        return first_turn_key(self.prompt)

    def as_row(self) -> dict[str, object]:
        """The pair as a line of a prepared file."""
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "source": self.source,
            "turns": self.turns,
        }


class UnusableRow(ValueError):
    """A row that cannot be used, for the reason it carries."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


def prompt_key(prompt: Text) -> Hashable:
    """Return what two prompts share exactly when they are the same prompt, outer spaces aside."""
    if isinstance(prompt, str):
        return prompt.strip()
    return tuple([(message["role"], message["content"].strip()) for message in prompt])


def first_turn(prompt: Text) -> str:
    """Return what the user said first; plain text is one turn."""
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in prompt if m["role"] == "user"), "")


def first_turn_key(prompt: Text) -> str:
    """Return a key that first user turns share if they differ in case, spaces or Unicode form only.

    Conversations that begin with the same turn often continue alike, so a prompt counts as seen in
    training if its first user turn is.
    """
    turn = first_turn(prompt)
    if turn.isascii():  # which has one Unicode form
        return " ".join(turn.lower().split())
    folded = unicodedata.normalize("NFKC", turn).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())
