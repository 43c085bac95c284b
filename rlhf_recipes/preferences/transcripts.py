r"""Conversations written into one string, as HH-RLHF, ChatML or `User:`/`Assistant:` texts are.

A string is a transcript only if it begins with the header of a turn. It is then split by turns, or
not used at all: never inside a turn.
"""

import re
from functools import cache
from typing import NamedTuple

from rlhf_recipes.preferences.shapes import UnusableRow
from rlhf_recipes.prompts import Messages

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "question": "user",
    "q": "user",
    "instruction": "user",
    "[inst]": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "answer": "assistant",
    "a": "assistant",
    "response": "assistant",
    "[/inst]": "assistant",
}
"""Roles of a chat template by the names that datasets and transcripts give them."""

_SPEAKERS = (
    *(("Human", "Assistant"), ("User", "Assistant"), ("USER", "ASSISTANT")),
    *(("Human", "AI"), ("User", "AI"), ("User", "Bot")),
)
_HEADINGS = (("Human", "Assistant"), ("User", "Assistant"), ("Instruction", "Response"))
_QUESTIONS = (("Question", "Answer"), ("Q", "A"))


class Style(NamedTuple):
    """One way of writing turns."""

    turn: re.Pattern[str]  # the header of a turn; its group is the speaker
    answer: re.Pattern[str]  # the header of an answer
    ends: tuple[str, ...] = ()  # what may close a turn


def _spoken(names: tuple[str, str], gap: str, mark: str = "") -> Style:
    """Turns such as `Human: ...`, each after a gap; only the first may be the system's."""
    system = "SYSTEM" if names[0] == "USER" else "System"
    turn = rf"(?:\A\s*|{gap}(?!{mark}{system})){mark}({'|'.join(names)}|{system}):"
    ends = ("</s>", "<|endoftext|>")
    return Style(re.compile(turn), re.compile(rf"(?<={gap}){mark}{names[1]}:"), ends)


def _marked(before: str, names: str, after: str, *ends: str) -> Style:
    """Turns between the special tokens of a chat template; spaces around them are no text."""
    turn = rf"(?:<s>|<bos>|<\|begin_of_text\|>)?\s*{before}({names}){after}"
    answer = re.compile(rf"{before}(?:assistant|model|\[/INST\]){after}")
    return Style(re.compile(turn), answer, ends)


# Paragraphs come before lines: in HH-RLHF a name after a single newline is part of a turn.
_DIALOGUES = (
    *(_spoken(names, r"\n\n") for names in _SPEAKERS),
    *(_spoken(names, r"\n\n", "### ?") for names in _HEADINGS),
    *(_spoken(names, r"\n") for names in _SPEAKERS),
    *(_spoken(names, r"\n", "### ?") for names in _HEADINGS),
    _spoken(("USER", "ASSISTANT"), r"\s"),
    _marked(r"<\|im_start\|>", r"\w+", r"\n", "<|im_end|>", "<|endoftext|>"),
    _marked(r"<\|start_header_id\|>", r"\w+", r"<\|end_header_id\|>", "<|eot_id|>"),
    _marked("<start_of_turn>", r"\w+", r"\n", "<end_of_turn>", "<eos>"),
    _marked(r"<\|", "system|user|assistant", r"\|>", "</s>", "<|end|>", "<|endoftext|>"),
    _marked("", r"\[INST\]|\[/INST\]", "", "</s>"),
)
_ALL = (*_DIALOGUES, *(_spoken(names, gap) for gap in (r"\n\n", r"\n") for names in _QUESTIONS))

_MARKS = r"\[INST\]|<start_of_turn>|<\|(?:im_start|start_header_id|system|user|assistant)\|>"
_FIRST_SPEAKERS = "System|SYSTEM|" + "|".join(
    sorted({name for pair in (*_SPEAKERS, *_HEADINGS) for name in pair})
)
_FIRST = re.compile(
    rf"\s*(?:(?:### ?)?(?:{_FIRST_SPEAKERS}):|(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:{_MARKS}))"
)
_ANYWHERE = re.compile(
    rf"(?:\A|\n)\s*(?:### ?)?(?:{_FIRST_SPEAKERS}|Question|Answer|Q|A):|\sASSISTANT:|{_MARKS}"
)


def begins_a_turn(text: str) -> bool:
    """Whether a text begins with the header of a turn of a dialogue."""
    return _FIRST.match(text) is not None


def holds_a_turn(text: str) -> bool:
    """Whether the header of a turn, or of a question or its answer, is anywhere in a text."""
    return _ANYWHERE.search(text) is not None


def style_of_pair(chosen: str, rejected: str) -> Style | None:
    """The style of two transcripts that hold their own prompt, if they are such."""
    return next((s for s in _ALL if _is_whole(s, chosen) or _is_whole(s, rejected)), None)


def style_of_prompt(prompt: str, *answers: str) -> Style | None:
    """The style of a prompt that is a transcript, perhaps without the header of its answer."""
    begun = [style for style in _DIALOGUES if style.turn.match(prompt)]
    headed = (s for s in begun if any(s.answer.search(text) for text in (prompt, *answers)))
    return next(headed, begun[0] if begun else None)


def split_turns(text: str, style: Style) -> Messages:
    """The messages of a transcript, or UnusableRow if it does not begin with a turn."""
    before, *turns = style.turn.split(text)
    if before.strip():
        raise UnusableRow("broken_roles")
    return [
        {"role": role_of(speaker), "content": _content(content, style.ends)}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def complete(prompt: str, answer: str, style: Style) -> Messages:
    """The messages of a transcript and of the answer that goes on from it."""
    turns = split_turns(prompt, style)
    if turns[-1]["role"] == "assistant":
        return split_turns(prompt + answer, style)
    continued = "\n\n" + answer.lstrip()
    if style.answer.match(continued, 2):
        return split_turns(prompt + continued, style)
    return [*turns, {"role": "assistant", "content": _content(answer, style.ends)}]


@cache
def role_of(speaker: str) -> str:
    """The role that a speaker has in a chat template; a name that is not known stays as it is."""
    return ROLES.get(speaker.lower(), speaker)


def _is_whole(style: Style, text: str) -> bool:
    return style.turn.match(text) is not None and style.answer.search(text) is not None


def _content(text: str, ends: tuple[str, ...]) -> str:
    text = text.strip()
    for end in ends:
        text = text.removesuffix(end).rstrip()
    return text
