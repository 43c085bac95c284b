"""The values of a row -> a pair: prompt, chosen and rejected as messages or plain text."""

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
    split_turns,
    style_of_pair,
    style_of_prompt,
)
from rlhf_recipes.prompts import Messages

NOT_TEXT = {
    *("tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("images", "image", "videos", "audio", "audios"),
}
"""Fields of a message without which it means something else."""

_READ = {"role", "content", "from", "value"}
_MESSAGES_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")


class Values(NamedTuple):
    """What a row's format found in it, each value as it stands in the row.

    `chat`: texts are turns of a conversation, not plain text that goes on from the prompt.
    `implicit`: the format has no prompt but what both answers begin with.
    """

    prompt: object
    chosen: object
    rejected: object
    system: str = ""
    chat: bool = False
    implicit: bool = False


class _Parts(NamedTuple):
    prompt: Text
    chosen: Text
    rejected: Text
    cut: bool = False


def parse_pair(values: Values, source: str, place: str, ignored: set[str]) -> Pair:
    """The values as a pair, or UnusableRow with the reason why not.

    Transcripts and conversations are split between turns: the prompt is every turn before the last
    one, and both answers must agree on it. Only plain text without a prompt is split inside: before
    the first word in which the two differ.

    Args:
        ignored: Gets the fields of messages that are in no pair.
    """
    prompt, chosen, rejected = map(_decoded, (values.prompt, values.chosen, values.rejected))
    if not chosen or not rejected:
        raise UnusableRow("empty")
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        parts = _from_texts(prompt, chosen, rejected, values)
    else:
        given = _given(prompt, ignored)
        first, second = (_whole(given, _messages(text, ignored)) for text in (chosen, rejected))
        parts = _conversation(first, second, values.system)
    turns = 1 if isinstance(parts.prompt, str) else sum(m["role"] == "user" for m in parts.prompt)
    return Pair(*parts[:3], turns, source, place, cut=parts.cut)


def _from_texts(prompt: str, chosen: str, rejected: str, values: Values) -> _Parts:
    whole = style_of_pair(chosen, rejected)
    if whole and (not prompt.strip() or (begins_a_turn(chosen) and begins_a_turn(rejected))):
        given = _given(prompt, set())
        first, second = (_whole(given, split_turns(text, whole)) for text in (chosen, rejected))
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
    """Text or a list of messages, which may be written as JSON or as Python writes them."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        return _messages_in_text(value) if _MESSAGES_AS_TEXT.match(value) else value
    if value is None or value != value:  # NaN, which tables have for what is missing
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


def _given(prompt: str | list[object], ignored: set[str]) -> Messages:
    """The turns of a prompt that stands apart; none if there is no prompt."""
    if not isinstance(prompt, str):
        return _messages(prompt, ignored) if prompt else []
    style = style_of_prompt(prompt) if begins_a_turn(prompt) else None
    if style is None:
        return [{"role": "user", "content": prompt}] if prompt.strip() else []
    turns = split_turns(prompt, style)
    return turns if turns[-1]["content"] else turns[:-1]


def _whole(given: Messages, answer: Messages) -> Messages:
    """All turns of one side: the prompt's and the answer's, which may begin with its own prompt."""
    if not given or not answer:
        return answer
    if answer[0]["role"] == "assistant":
        return [*given, *answer]
    return [*_agreed(given, answer[:-1]), answer[-1]]


def _agreed(given: Messages, own: Messages) -> Messages:
    """An answer's own prompt with the system turn of either; UnusableRow if they do not agree.

    The prompt that stands apart may be all the turns, the first ones, the last one, or a whole
    conversation with an answer.
    """
    system, turns = _system_apart(given)
    own_system, own_turns = _system_apart(own)
    if system and own_system and not _same(system, own_system):
        raise UnusableRow("prompt_differs")
    agree = (
        _same(turns, own_turns[: len(turns)])
        or _same(turns, own_turns[-1:])
        or (_same(turns[:-1], own_turns) and turns[-1]["role"] == "assistant")
    )
    if not agree:
        raise UnusableRow("prompt_differs")
    return [*(own_system or system), *own_turns]


def _system_apart(messages: Messages) -> tuple[Messages, Messages]:
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
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise UnusableRow("broken_roles")
        if len(message) > 2:
            _check_fields(message, ignored)
        content, role = _content(message.get("content", message.get("value"))), role_of(role)
        if role != "system" or content.strip():  # an empty system turn says nothing
            messages.append({"role": role, "content": content})
    return messages


def _check_fields(message: Mapping[str, object], ignored: set[str]) -> None:
    for name in message.keys() - _READ:
        if message[name] not in (None, "", [], {}):
            if name in NOT_TEXT:
                raise UnusableRow("not_text")
            ignored.add(f"{name} of a message")


def _content(content: object) -> str:
    """The text of a turn, which may come in parts of type text."""
    if isinstance(content, str):
        return content
    if content is None:
        raise UnusableRow("empty")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UnusableRow("not_text")
    return "".join(str(text) for text in texts)


def _conversation(chosen: Messages, rejected: Messages, system: str) -> _Parts:
    if system:
        chosen, rejected = (_with_system(system, messages) for messages in (chosen, rejected))
    if any(m["role"] in ("tool", "function", "observation") for m in chosen):
        raise UnusableRow("not_text")
    if not _roles_alternate(chosen) or not _roles_alternate(rejected):
        raise UnusableRow("broken_roles")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        raise UnusableRow("no_common_prompt")
    _check_texts([m["content"] for m in [*prompt, chosen[-1], rejected[-1]]])
    return _Parts(prompt, chosen[-1:], rejected[-1:])


def _with_system(system: str, messages: Messages) -> Messages:
    turn = {"role": "system", "content": system}
    own, turns = _system_apart(messages)
    if own and not _same(own, [turn]):
        raise UnusableRow("prompt_differs")
    return [turn, *turns]


def _roles_alternate(messages: Messages) -> bool:
    roles = [m["role"] for m in messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return len(roles) >= 2 and roles == ["user", "assistant"] * (len(roles) // 2)


def _plain(prompt: str, chosen: str, rejected: str) -> _Parts:
    cut = not prompt.strip()
    _check_texts([chosen, rejected])
    if cut:
        size = _common_words(chosen, rejected)
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        if not prompt.strip():
            raise UnusableRow("no_common_prompt")
    _check_texts([prompt, chosen, rejected])
    return _Parts(prompt, chosen, rejected, cut)


def _check_texts(texts: Sequence[str]) -> None:
    """Raise UnusableRow unless all have text that can be encoded and the last two differ."""
    if not all(text.strip() for text in texts):
        raise UnusableRow("empty")
    if texts[-1].strip() == texts[-2].strip():
        raise UnusableRow("identical")
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise UnusableRow("not_text") from error


def _common_words(first: str, second: str) -> int:
    """Characters of the longest common beginning that ends at a space in both texts."""
    size = 0
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            break
        if a.isspace():
            size = index
    return size
