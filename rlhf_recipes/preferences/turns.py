"""Make a pair of the values of a row: prompt, chosen and rejected as messages or plain text."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_recipes.preferences.shapes import Pair, Text, UnusableRow
from rlhf_recipes.preferences.transcripts import (
    ROLES,
    begins_a_turn,
    complete,
    holds_a_turn,
    role_of,
    split_pair,
    split_turns,
    style_of_pair,
    style_of_prompt,
)
from rlhf_recipes.prompts import Messages

NOT_TEXT = {
    *("tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("images", "image", "videos", "audio", "audios"),
}
"""Fields of a message that a pair cannot hold and its meaning depends on."""

_READ = {"role", "content", "from", "value"}
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")


class RowValues(NamedTuple):
    """The values of a row, unchanged, by what its format says they are.

    Args:
        chat: Whether texts are turns of a conversation. Otherwise completions are plain text that
            continues the prompt.
        implicit: Whether the format has no prompt except what both completions begin with.
    """

    prompt: object
    chosen: object
    rejected: object
    system: str = ""
    chat: bool = False
    implicit: bool = False


class _Texts(NamedTuple):
    prompt: Text
    chosen: Text
    rejected: Text
    cut: bool = False


def parse_pair(values: RowValues, source: str, location: str, ignored: set[str]) -> Pair:
    """Return the pair of a row; raise UnusableRow with the reason if there is none.

    Transcripts and conversations are split between turns: the prompt is every turn before the last
    one, and it must be the same for chosen and rejected. Only plain text without a prompt is split
    inside: before the first word in which the two differ.

    Args:
        ignored: The names of unused fields of messages are added to it.
    """
    prompt, chosen, rejected = map(_decoded, (values.prompt, values.chosen, values.rejected))
    if not chosen or not rejected:
        raise UnusableRow("empty")
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        texts = _from_texts(prompt, chosen, rejected, values)
    else:
        prompt_turns = _prompt_turns(prompt, ignored)
        first, second = (
            _all_turns(prompt_turns, _messages(text, ignored)) for text in (chosen, rejected)
        )
        texts = _conversation(first, second, values.system)
    turns = 1 if isinstance(texts.prompt, str) else _roles(texts.prompt).count("user")
    return Pair(*texts[:3], turns, source, location, cut=texts.cut)


def _from_texts(prompt: str, chosen: str, rejected: str, values: RowValues) -> _Texts:
    pair_style = style_of_pair(chosen, rejected)
    if pair_style and (not prompt.strip() or (begins_a_turn(chosen) and begins_a_turn(rejected))):
        prompt_turns = _prompt_turns(prompt, set())
        first, second = (
            _all_turns(prompt_turns, turns) for turns in split_pair(chosen, rejected, pair_style)
        )
        return _conversation(first, second, values.system)
    style = style_of_prompt(prompt, chosen, rejected) if begins_a_turn(prompt) else None
    if style:
        first, second = (complete(prompt, text, style) for text in (chosen, rejected))
        return _conversation(first, second, values.system)
    if prompt.strip() and (values.chat or values.system):
        user = {"role": "user", "content": prompt}
        first, second = (
            [user, {"role": "assistant", "content": text}] for text in (chosen, rejected)
        )
        return _conversation(first, second, values.system)
    if not prompt.strip() and (values.system or not values.implicit):
        raise UnusableRow("no_prompt")
    if not prompt.strip() and (holds_a_turn(chosen) or holds_a_turn(rejected)):
        raise UnusableRow("broken_roles")
    return _plain(prompt, chosen, rejected)


def _decoded(value: object) -> str | list[object]:
    """Return text or a list of messages, decoding messages written as JSON or Python literals."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        return _messages_in_text(value) if _MESSAGES_AS_TEXT.match(value) else value
    if value is None or value != value:  # NaN, a missing value in a table
        return ""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    raise UnusableRow("not_text")


def _messages_in_text(text: str) -> str | list[object]:
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError):
            continue
        messages = [value] if isinstance(value, dict) else value
        roles = [m.get("role", m.get("from")) for m in messages if isinstance(m, dict)]
        if roles and all(str(role).lower() in ROLES for role in roles):
            return list(messages)
        return text
    raise UnusableRow("not_text")


def _prompt_turns(prompt: str | list[object], ignored: set[str]) -> Messages:
    """Return the turns of the prompt column; none if it is empty."""
    if not isinstance(prompt, str):
        return _messages(prompt, ignored) if prompt else []
    style = style_of_prompt(prompt) if begins_a_turn(prompt) else None
    if style is None:
        return [{"role": "user", "content": prompt}] if prompt.strip() else []
    turns = split_turns(prompt, style)
    return turns if turns[-1]["content"] else turns[:-1]


def _all_turns(prompt_turns: Messages, side: Messages) -> Messages:
    """Return all turns of chosen or rejected, which may begin with the prompt's turns itself."""
    if not prompt_turns or not side:
        return side
    if side[0]["role"] == "assistant":
        return [*prompt_turns, *side]
    return [*_merged_prompt(prompt_turns, side[:-1]), side[-1]]


def _merged_prompt(prompt_turns: Messages, side_turns: Messages) -> Messages:
    """Return the turns before a completion with the system turn of either; UnusableRow otherwise.

    The prompt column may hold all the turns before the completion, the first ones, the last one,
    or a whole conversation with a completion.
    """
    system, turns = _split_system(prompt_turns)
    side_system, before = _split_system(side_turns)
    if system and side_system and not _same(system, side_system):
        raise UnusableRow("prompt_differs")
    agree = (
        _same(turns, before[: len(turns)])
        or _same(turns, before[-1:])
        or (_same(turns[:-1], before) and turns[-1]["role"] == "assistant")
    )
    if not agree:
        raise UnusableRow("prompt_differs")
    return [*(side_system or system), *before]


def _split_system(messages: Messages) -> tuple[Messages, Messages]:
    """Return the system turn, if there is one, and the other turns."""
    count = 1 if messages and messages[0]["role"] == "system" else 0
    return messages[:count], messages[count:]


def _same(first: Messages, second: Messages) -> bool:
    return first == second or (
        [(m["role"], m["content"].split()) for m in first]
        == [(m["role"], m["content"].split()) for m in second]
    )


def _messages(value: str | list[object], ignored: set[str]) -> Messages:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise UnusableRow("not_text" if isinstance(message, str) else "broken_roles")
        role = message["role"] if "role" in message else message.get("from")
        if not isinstance(role, str):
            raise UnusableRow("broken_roles")
        if len(message) > 2:
            _check_fields(message, ignored)
        content = message["content"] if "content" in message else message.get("value")
        if not isinstance(content, str):
            content = _joined_parts(content)
        role = role_of(role)
        if role != "system" or content.strip():  # an empty system turn is dropped
            messages.append({"role": role, "content": content})
    return messages


def _check_fields(message: Mapping[str, object], ignored: set[str]) -> None:
    for name in message.keys() - _READ:
        if message[name] not in (None, "", [], {}):
            if name in NOT_TEXT:
                raise UnusableRow("not_text")
            ignored.add(f"{name} of a message")


def _joined_parts(content: object) -> str:
    """Return the text of a turn that is written as content parts of type text."""
    if content is None:
        raise UnusableRow("empty")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableRow("not_text")
    return "".join(str(text) for text in texts)


def _conversation(chosen: Messages, rejected: Messages, system: str) -> _Texts:
    if system:
        chosen, rejected = (_with_system(system, messages) for messages in (chosen, rejected))
    roles = _roles(chosen)
    if not {"tool", "function", "observation"}.isdisjoint(roles):
        raise UnusableRow("not_text")
    if not _alternate(roles) or not _alternate(_roles(rejected)):
        raise UnusableRow("broken_roles")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        raise UnusableRow("no_common_prompt")
    _check_texts([m["content"] for m in [*prompt, chosen[-1], rejected[-1]]])
    return _Texts(prompt, chosen[-1:], rejected[-1:])


def _with_system(system: str, messages: Messages) -> Messages:
    turn = {"role": "system", "content": system}
    system_turn, turns = _split_system(messages)
    if system_turn and not _same(system_turn, [turn]):
        raise UnusableRow("prompt_differs")
    return [turn, *turns]


def _roles(messages: Messages) -> list[str]:
    return [m["role"] for m in messages]


def _alternate(roles: list[str]) -> bool:
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return len(roles) >= 2 and roles == ["user", "assistant"] * (len(roles) // 2)


def _plain(prompt: str, chosen: str, rejected: str) -> _Texts:
    cut = not prompt.strip()
    _check_texts([chosen, rejected])
    if cut:
        size = _common_words(chosen, rejected)
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        if not prompt.strip():
            raise UnusableRow("no_common_prompt")
    _check_texts([prompt, chosen, rejected])
    return _Texts(prompt, chosen, rejected, cut)


def _check_texts(texts: Sequence[str]) -> None:
    """Raise UnusableRow unless all texts can be encoded, none is empty, and the last two differ."""
    if not all(map(str.strip, texts)):
        raise UnusableRow("empty")
    if texts[-1].strip() == texts[-2].strip():
        raise UnusableRow("identical")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise UnusableRow("not_text") from error


def _common_words(first: str, second: str) -> int:
    """Return the length of the longest common prefix that ends before a space in both texts."""
    size = 0
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            break
        if a.isspace():
            size = index
    return size
