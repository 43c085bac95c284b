r"""Split transcripts, conversations in one string: HH-RLHF, ChatML, `User:`/`Assistant:`.

A string is a transcript only if it begins with the header of a turn. It is then split between
turns, or not used at all.
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
"""Roles of a chat template by the names that datasets and transcripts use."""

_SPEAKERS = (
    *(("Human", "Assistant"), ("User", "Assistant"), ("USER", "ASSISTANT")),
    *(("Human", "AI"), ("User", "AI"), ("User", "Bot")),
)
_HEADINGS = (("Human", "Assistant"), ("User", "Assistant"), ("Instruction", "Response"))
_QUESTIONS = (("Question", "Answer"), ("Q", "A"))


class Style(NamedTuple):
    """One way of writing turns."""

    first: re.Pattern[str]  # header of the first turn; its group is the speaker
    turn: re.Pattern[str]  # header of a following turn; its group is the speaker
    answer: re.Pattern[str]  # header of an assistant turn
    ends: tuple[str, ...] = ()  # tokens that may end a turn


def _spoken(names: tuple[str, str], gap: str, mark: str = "") -> Style:
    """Return the style of turns such as `Human: ...`; only the first may be a system turn."""
    system = "SYSTEM" if names[0] == "USER" else "System"
    first = rf"\s*{mark}({'|'.join(names)}|{system}):"
    # A pattern that begins with a character is searched three times as fast as alternatives.
    turn = rf"{gap}{mark}({'|'.join(names)}):"
    ends = ("</s>", "<|endoftext|>")
    answer = rf"(?<={gap}){mark}{names[1]}:"
    return Style(re.compile(first), re.compile(turn), re.compile(answer), ends)


def _marked(before: str, names: str, after: str, *ends: str) -> Style:
    """Return the style of turns between special tokens; spaces around the tokens are ignored."""
    turn = re.compile(rf"(?:<s>|<bos>|<\|begin_of_text\|>)?\s*{before}({names}){after}")
    answer = re.compile(rf"{before}(?:assistant|model|\[/INST\]){after}")
    return Style(turn, turn, answer, ends)


# Paragraphs come before lines: in HH-RLHF a name after a single newline belongs to the turn.
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
    """Whether a text begins with the header of a turn."""
    return _FIRST.match(text) is not None


def holds_a_turn(text: str) -> bool:
    """Whether a text contains the header of a turn, or of a question or an answer."""
    return _ANYWHERE.search(text) is not None


def style_of_pair(chosen: str, rejected: str) -> Style | None:
    """Return the style of two transcripts that include their prompt, or None."""
    return next((s for s in _ALL if _is_whole(s, chosen) or _is_whole(s, rejected)), None)


def style_of_prompt(prompt: str, *answers: str) -> Style | None:
    """Return the style of a prompt that is a transcript, or None.

    Args:
        *answers: The completions, which may begin with the header that the prompt lacks.
    """
    matching = [style for style in _DIALOGUES if style.first.match(prompt)]
    answered = (s for s in matching if any(s.answer.search(text) for text in (prompt, *answers)))
    return next(answered, matching[0] if matching else None)


def split_turns(text: str, style: Style) -> Messages:
    """Return the messages of a transcript; UnusableRow if it does not begin with a turn."""
    return _messages(_split(text, style), style)


def split_pair(chosen: str, rejected: str, style: Style) -> tuple[Messages, Messages]:
    """Return the messages of two transcripts; they share those before the completion if equal."""
    first, second = _split(chosen, style), _split(rejected, style)
    turns = _messages(first, style)
    if first[:-1] == second[:-1]:
        return turns, [*turns[:-1], *_messages(second[-2:], style)]
    return turns, _messages(second, style)


def complete(prompt: str, answer: str, style: Style) -> Messages:
    """Return the messages of a transcript followed by its completion."""
    turns = split_turns(prompt, style)
    if turns[-1]["role"] == "assistant":
        return split_turns(prompt + answer, style)
    continued = "\n\n" + answer.lstrip()
    if style.answer.match(continued, 2):
        return split_turns(prompt + continued, style)
    return [*turns, {"role": "assistant", "content": _content(answer, style.ends)}]


@cache
def role_of(speaker: str) -> str:
    """Return the role of a speaker in a chat template; an unknown name is returned unchanged."""
    return ROLES.get(speaker.lower(), speaker)


def _split(text: str, style: Style) -> list[str]:
    """Return the speaker and the content of each turn, alternating."""
    first = style.first.match(text)
    if not first:
        raise UnusableRow("broken_roles")
    return [first[1], *style.turn.split(text[first.end() :])]


def _messages(turns: list[str], style: Style) -> Messages:
    return [
        {"role": role_of(speaker), "content": _content(content, style.ends)}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _is_whole(style: Style, text: str) -> bool:
    return style.first.match(text) is not None and style.answer.search(text) is not None


def _content(text: str, ends: tuple[str, ...]) -> str:
    text = text.strip()
    for end in ends:
        text = text.removesuffix(end).rstrip()
    return text
