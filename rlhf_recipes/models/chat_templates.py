"""Bind arguments of a chat template to a tokenizer, so that everything renders the same text.

Some templates read variables beside the messages, such as `enable_thinking` of Qwen3's, and a
caller gives them to `apply_chat_template`. TRL's reward and DPO trainers pass on none that a recipe
sets, so one stage would learn another text than the next one samples or scores. Here they are
written at the beginning of the template itself, as assignments in Jinja. `models.loading` does so
where every stage opens its tokenizer. From then on no caller can leave an argument out, or give it
another value: an assignment in a template wins over what is passed. The template is saved with the
adapter's tokenizer, so whoever loads that gets the same text, and a template that differs in an
argument differs as a text.
"""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError

BEGIN = "{# chat_template_kwargs #}\n"
END = "{# end of chat_template_kwargs #}\n"

SET_BY_TRANSFORMERS = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
}
"""Variables that `apply_chat_template` sets itself."""


class _Generation(Extension):
    """The tag `{% generation %}` of transformers, which marks what an assistant says."""

    tags = {"generation"}  # noqa: RUF012  # declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# The settings of transformers, whose own environment has no public name.
_JINJA = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
)


def bind_template_kwargs(
    tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] | None
) -> None:
    """Assign `kwargs` to variables of a tokenizer's chat template, in place of earlier values.

    Raises:
        RecipeError: The template has no such variable, or the value is not one of JSON.
    """
    if not kwargs:
        return
    template, name = tokenizer.chat_template, tokenizer.name_or_path
    if not isinstance(template, str):
        kind = "several chat templates" if template else "no chat template"
        raise RecipeError(
            f"`chat_template_kwargs` is {dict(kwargs)}, and the tokenizer of `{name}` has {kind}. "
            "Set `chat_template` to a Jinja file that uses them, or leave them out."
        )
    variables = _variables(tokenizer)
    unknown = [key for key in kwargs if key not in variables]
    if unknown:
        raise RecipeError(
            f"`chat_template_kwargs` has {', '.join(f'`{key}`' for key in unknown)}, and the chat "
            f"template of `{name}` has no such argument, so nothing would change. Its arguments: "
            f"{', '.join(sorted(variables)) or 'none'}. Correct the name, or leave it out."
        )
    for key, value in kwargs.items():
        _check_json(key, value)
    values = {**template_kwargs(tokenizer), **kwargs}
    assignments = [f"{{% set {key} = {value!r} %}}\n" for key, value in sorted(values.items())]
    tokenizer.chat_template = "".join([BEGIN, *assignments, END, _body(template)])


def template_kwargs(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the arguments that are bound to a tokenizer's chat template, by name."""
    template = tokenizer.chat_template
    if not isinstance(template, str) or not template.startswith(BEGIN):
        return {}
    try:
        header = _JINJA.parse(template.removesuffix(_body(template)))
        return {
            node.target.name: node.node.as_const()
            for node in header.find_all(nodes.Assign)
            if isinstance(node.target, nodes.Name) and isinstance(node.node, nodes.Expr)
        }
    except (TemplateError, nodes.Impossible) as error:
        raise _unreadable(tokenizer, error) from error


def template_differences(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> list[str]:
    """Return the differences of two tokenizers' chat templates in words."""
    templates = tokenizer.chat_template, other.chat_template
    if templates[0] == templates[1]:
        return []
    differences = kwargs_differences(tokenizer, other)
    first, second = (_body(text) if isinstance(text, str) else text for text in templates)
    if not differences or first != second:
        differences.append("their chat templates are not the same text")
    return differences


def kwargs_differences(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> list[str]:
    """Return each variable that both chat templates read and that has two values, in words."""
    bound = template_kwargs(tokenizer), template_kwargs(other)
    if bound[0] == bound[1]:
        return []
    shared = _variables(tokenizer) & _variables(other)
    values = {
        key: [repr(kwargs[key]) if key in kwargs else "not set" for kwargs in bound]
        for key in sorted(shared & {*bound[0], *bound[1]})
    }
    return [
        f"`{key}` of `chat_template_kwargs` is {first} and {second}"
        for key, (first, second) in values.items()
        if first != second
    ]


def _body(template: str) -> str:
    """Return a template without the arguments that are bound to it."""
    return template.partition(END)[2] if template.startswith(BEGIN) else template


def _variables(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the variables that a caller of a tokenizer's chat template can set."""
    if not isinstance(tokenizer.chat_template, str):
        return set()
    try:
        parsed = _JINJA.parse(_body(tokenizer.chat_template))
        variables = meta.find_undeclared_variables(parsed)
    except TemplateError as error:
        raise _unreadable(tokenizer, error) from error
    provided = {"raise_exception", "strftime_now", *tokenizer.special_tokens_map}
    return variables - SET_BY_TRANSFORMERS - provided


def _unreadable(tokenizer: PreTrainedTokenizerBase, error: Exception) -> RecipeError:
    return RecipeError(
        f"The chat template of `{tokenizer.name_or_path}` cannot be read: {error}. Set "
        "`chat_template` to another one."
    )


def _check_json(key: str, value: Any) -> None:
    try:
        if json.loads(json.dumps(value, allow_nan=False)) == value:
            return
    except (TypeError, ValueError):
        pass
    raise RecipeError(
        f"`{key}` of `chat_template_kwargs` is {value!r}, which is not a value of JSON. Give a "
        "text (a date in quotes), a number, true, false, null, a list or a mapping."
    )
