"""A chat template that cannot render a conversation: what it raises, and the sentence for it."""

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import TemplateError

from rlhf_recipes.errors import RecipeError

RENDER_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError)
"""A template is a program: beside Jinja's own errors it can raise those of its expressions."""


def refused(name: str, messages: Iterable[Mapping[str, Any]], error: Exception) -> RecipeError:
    """The error that says which roles the chat template of `name` refuses, and why."""
    return RecipeError(
        f"The chat template of `{name}` refuses a conversation of roles "
        f"{[message['role'] for message in messages]}: {error}. Use another template or model."
    )
