r"""One row of preference data, in any of the usual shapes -> prompt, chosen and rejected.

Shapes: HH strings (`\n\nHuman: ... \n\nAssistant: ...`) and TRL's preference format, with the
prompt apart or inside both texts, as plain text or as messages.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Messages = list[dict[str, str]]
Text = str | Messages
_Parts = tuple[Text, Text, Text, int]  # prompt, chosen, rejected, turns

Reason = Literal[
    "empty", "identical", "no_common_prompt", "broken_roles", "too_long", "prompt_in_train"
]

REASONS: dict[Reason, str] = {
    "empty": "the prompt, one of its turns, or an answer has no text",
    "identical": "chosen and rejected are the same answer",
    "no_common_prompt": "chosen and rejected do not answer the same prompt",
    "broken_roles": "the turns do not alternate from user to assistant and end with an answer",
    "too_long": "the prompt with its longer answer is over max_length",
    "prompt_in_train": "a held-out row whose first user turn is also in a training row",
}

HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_HH_START = re.compile(r"\s*Human:")
_HH_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPOKEN = re.compile(r"(?:\A|\n\n)(Human|Assistant|System): ")


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
    stands in the dataset as it was found.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    turns: int
    source: str
    place: str
    lengths: Lengths = NOT_MEASURED

    def as_row(self) -> dict[str, object]:
        """The pair as a line of a prepared file."""
        names = ("prompt", "chosen", "rejected", "source", "turns")
        return {name: getattr(self, name) for name in names}


class UnusableRow(ValueError):
    """A row that cannot be used, for the reason it carries."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


def prompt_text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt for people to read: text or a single turn as it is, else turns as HH writes them."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    names = {role: name for name, role in HH_ROLES.items()}
    return "\n\n".join(f"{names.get(m['role'], 'System')}: {m['content']}" for m in prompt)


def spoken_turns(text: str) -> list[tuple[str, str]]:
    r"""The turns that `prompt_text` joined, each with its speaker; a single one has none.

    >>> spoken_turns("Human: hi\n\nAssistant: yes?\n\nHuman: help")
    [('Human', 'hi'), ('Assistant', 'yes?'), ('Human', 'help')]
    """
    if not _SPOKEN.match(text):
        return [("", text)]
    parts = _SPOKEN.split(text)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def answer_text(answer: Text) -> str:
    """A chosen or rejected answer as text."""
    return answer if isinstance(answer, str) else answer[-1]["content"]


def is_hh(rows: Iterable[Mapping[str, object]]) -> bool:
    """Whether the rows that are text are HH strings: whether most of them begin with `Human:`."""
    starts = [
        _starts_hh(row.get("chosen")) or _starts_hh(row.get("prompt"))
        for row in rows
        if isinstance(row.get("chosen"), str)
    ]
    return 2 * sum(starts) > len(starts)


def parse_pair(row: Mapping[str, object], hh: bool, source: str, place: str) -> Pair:
    """The row as a pair, or UnusableRow with the reason why not.

    HH texts and conversations are split between turns: the prompt is every turn before the last
    one, and both texts must agree on it. Only plain text without a prompt is split inside: before
    the first word in which the two differ.

    Args:
        hh: Whether the dataset's texts are HH strings.
    """
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if not chosen or not rejected:
        raise UnusableRow("empty")
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if not texts or not (prompt is None or isinstance(prompt, str)):
        parts = _conversation(_turns(prompt, chosen), _turns(prompt, rejected))
    elif hh:
        parts = _conversation(_hh_turns(prompt, str(chosen)), _hh_turns(prompt, str(rejected)))
    else:
        parts = _plain(prompt, str(chosen), str(rejected))
    return Pair(*parts, source, place)


def _starts_hh(text: object) -> bool:
    return isinstance(text, str) and _HH_START.match(text) is not None


def _hh_turns(prompt: str | None, text: str) -> Messages:
    """The messages of an HH string; a prompt given apart is put in front if the text lacks it."""
    if prompt is not None and not _starts_hh(text):
        text = prompt + text
    before, *parts = _HH_TURN.split(text)
    if before.strip():
        raise UnusableRow("broken_roles")
    return [
        {"role": HH_ROLES[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _turns(prompt: object, completion: object) -> Messages:
    """All messages of one side; a completion that starts with its own prompt needs no other."""
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    answer = _messages(completion)
    if answer[0]["role"] != "assistant" or prompt is None:
        return answer
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}, *answer]
    return [*_messages(prompt), *answer]


def _messages(value: object) -> Messages:
    if not isinstance(value, list) or not value:
        raise UnusableRow("broken_roles")
    messages = []
    for message in value:
        fields = message if isinstance(message, Mapping) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str):
            raise UnusableRow("broken_roles")
        if not isinstance(content, str):
            raise UnusableRow("empty")
        messages.append({"role": role, "content": content})
    return messages


def _conversation(chosen: Messages, rejected: Messages) -> _Parts:
    if not _roles_alternate(chosen) or not _roles_alternate(rejected):
        raise UnusableRow("broken_roles")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        raise UnusableRow("no_common_prompt")
    if not all(m["content"].strip() for m in [*chosen, rejected[-1]]):
        raise UnusableRow("empty")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise UnusableRow("identical")
    turns = sum(m["role"] == "user" for m in prompt)
    return prompt, chosen[-1:], rejected[-1:], turns


def _roles_alternate(messages: Messages) -> bool:
    roles = [m["role"] for m in messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return len(roles) >= 2 and roles == ["user", "assistant"] * (len(roles) // 2)


def _plain(prompt: str | None, chosen: str, rejected: str) -> _Parts:
    if not chosen.strip() or not rejected.strip():
        raise UnusableRow("empty")
    if chosen.strip() == rejected.strip():
        raise UnusableRow("identical")
    if prompt is None:
        size = _common_words(chosen, rejected)
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        if not prompt.strip():
            raise UnusableRow("no_common_prompt")
    if not all(text.strip() for text in (prompt, chosen, rejected)):
        raise UnusableRow("empty")
    return prompt, chosen, rejected, 1


def _common_words(first: str, second: str) -> int:
    """Characters of the longest common beginning that ends at a space in both texts."""
    size = 0
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            break
        if a.isspace():
            size = index
    return size
