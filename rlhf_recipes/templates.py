"""A chat template that cannot render a conversation, or leaves out what it says: the sentences."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError

RENDER_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError)
"""A template is a program: beside Jinja's own errors it can raise those of its expressions."""

PROBE = (
    {"role": "user", "content": "How many days has a leap year?"},
    {"role": "assistant", "content": "It has three hundred and sixty-six."},
    {"role": "user", "content": "And every other year?"},
    {"role": "assistant", "content": "One day less than that."},
)


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RecipeError where the chat template leaves out what a message says.

    One that refuses the probe may yet render the data, or refuse it with its own sentence.
    """
    _check_probe(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _check_probe(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Check the probe once per tokenizer and template: every text of the data comes by here."""
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
            "than the data's. Give a template that writes every message with `chat_template`."
        )


def refused(name: str, messages: Iterable[Mapping[str, Any]], error: Exception) -> RecipeError:
    """The error that says which roles the chat template of `name` refuses, and why."""
    return RecipeError(
        f"The chat template of `{name}` refuses a conversation of roles "
        f"{[message['role'] for message in messages]}: {error}. Use another template or model."
    )
