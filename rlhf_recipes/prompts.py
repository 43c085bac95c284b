"""A prompt as text, as messages, as token ids, and as padded tensors.

Importing this module does not import torch, which takes seconds: preparing data and reading samples
do without it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from rlhf_recipes.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
"""The messages of a conversation, each with its `role` and `content`."""

Prompt = str | Messages
"""Plain text, or the messages of a conversation that ends with the user's turn."""

HH_ROLES = {"Human": "user", "Assistant": "assistant"}
"""Role of a chat template for each speaker in HH-RLHF."""

RENDER_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError)
"""Errors of rendering a chat template, whose expressions can fail like any program's."""

PROBE = (
    {"role": "user", "content": "How many days has a leap year?"},
    {"role": "assistant", "content": "It has three hundred and sixty-six."},
    {"role": "user", "content": "And every other year?"},
    {"role": "assistant", "content": "One day less than that."},
)
"""A conversation that every chat template is tried on: each content must appear in the text."""

_SPOKEN = re.compile(r"(?:\A|\n\n)(Human|Assistant|System): ")


def prompt_text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """Return a prompt for people to read.

    Plain text and a single turn stay as they are; several turns are written in HH-RLHF's format.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    names = {role: name for name, role in HH_ROLES.items()}
    return "\n\n".join(f"{names.get(m['role'], 'System')}: {m['content']}" for m in prompt)


def spoken_turns(text: str) -> list[tuple[str, str]]:
    r"""Split a text that `prompt_text` joined into pairs of speaker and turn.

    A single turn has no speaker.

    >>> spoken_turns("Human: hi\n\nAssistant: yes?\n\nHuman: help")
    [('Human', 'hi'), ('Assistant', 'yes?'), ('Human', 'help')]
    """
    if not _SPOKEN.match(text):
        return [("", text)]
    fields = _SPOKEN.split(text)
    return list(zip(fields[1::2], fields[2::2], strict=True))


def completion_text(completion: str | Sequence[Mapping[str, str]]) -> str:
    """Return the text of a completion, given as text or as messages that end with it."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Return the token ids that a completion is conditioned on, the same as in TRL's trainers."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return template_ids(tokenizer, prompt, add_generation_prompt=True)


def ids_to_complete(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    """Return `prompt_ids`; raise RecipeError where there is no token to continue."""
    ids = prompt_ids(tokenizer, prompt)
    if not ids:
        raise RecipeError(
            f"The prompt {prompt!r} has no token, so there is nothing to complete. Remove empty "
            "prompts from the data, and check that the chat template writes out the messages."
        )
    return ids


def template_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, *, add_generation_prompt: bool
) -> list[int]:
    """Return the token ids of a conversation, rendered by the tokenizer's chat template."""
    if tokenizer.chat_template is None:
        raise RecipeError(
            "The data is conversations and the tokenizer has no chat template. Set "
            "`chat_template` to a Jinja file; recipes/hh-rlhf/gpt2 ships one in HH's own format."
        )
    check_template(tokenizer)
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
        )
    except RENDER_ERRORS as error:
        raise template_error(tokenizer.name_or_path, messages, error) from error
    return list(encoded["input_ids"])


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise RecipeError where the chat template leaves out the content of a message.

    A template that refuses `PROBE` passes: it may render the data, or refuse it with its own error.
    """
    _check_probe(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _check_probe(tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
    """Check once per tokenizer and template, because every text of the data is encoded here."""
    try:
        text = str(tokenizer.apply_chat_template([*PROBE], tokenize=False))
    except RENDER_ERRORS:
        return
    lost = [message for message in PROBE if message["content"] not in text]
    if lost:
        raise RecipeError(
            f"The chat template of `{tokenizer.name_or_path}` renders a conversation as "
            f"{text[:200]!r}, without what the {lost[0]['role']} says in it "
            f"({lost[0]['content']!r}), so a model would be trained and measured on other texts "
            "than the data's. Set `chat_template` to a template that writes out every message."
        )


def template_error(
    name: str, messages: Iterable[Mapping[str, Any]], error: Exception
) -> RecipeError:
    """Return the error for a conversation that the chat template of model `name` refuses."""
    return RecipeError(
        f"The chat template of `{name}` refuses a conversation of roles "
        f"{[message['role'] for message in messages]}: {error}. Use another template or model."
    )


def pad(
    sequences: Sequence[Sequence[int]], pad_token_id: int, *, left: bool
) -> tuple["Tensor", "Tensor"]:
    """Return token ids of shape (batch, longest) and their attention mask, True for real tokens.

    The mask comes from the lengths, never from the ids: the padding token may be a real one.
    """
    import torch

    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        columns = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        input_ids[row, columns] = torch.tensor(sequence, dtype=torch.long)
        attention_mask[row, columns] = True
    return input_ids, attention_mask


def position_ids(attention_mask: "Tensor") -> "Tensor":
    """Return position ids that count real tokens only, so that left padding does not shift them."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
