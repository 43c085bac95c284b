"""Arguments that are bound to a chat template."""

import datetime

import pytest
from transformers import AutoTokenizer

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.chat_templates import (
    bind_template_kwargs,
    kwargs_differences,
    template_differences,
    template_kwargs,
)
from rlhf_recipes.models.loading import open_tokenizer

TEMPLATE = """
  {% if not date is defined %}{% set date = 'today' %}{% endif %}
  {{ bos_token }}{{ date }}
{% for message in messages %}
  {% generation %}{{ message.role }}: {{ message.content }}{% endgeneration %}

{% endfor %}
{% macro closing(text) %}{{ text if enable_thinking is not false else 'no ' ~ text }}{% endmacro %}
{% if add_generation_prompt %}{{ closing('thoughts') }}{% endif %}
"""
MESSAGES = [{"role": "user", "content": "Hi"}]


def tokenizer(template=TEMPLATE, **kwargs):
    opened = open_tokenizer("tiny")
    opened.chat_template = template
    bind_template_kwargs(opened, kwargs)
    return opened


def rendered(opened, **kwargs):
    return opened.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, **kwargs
    )


@pytest.mark.parametrize(
    "value",
    [False, True, None, 3, -2.5, "26 Jul", 'it\'s "ü" \n🙂 %} #} {{ x }}', ["a", {"b": None}], {}],
)
def test_a_bound_value_renders_as_one_that_is_passed(value):
    bound = tokenizer(date=value)
    assert rendered(bound) == rendered(tokenizer(), date=value)
    assert template_kwargs(bound) == {"date": value}


def test_no_caller_can_pass_another_value():
    bound = tokenizer(enable_thinking=False)
    assert "no thoughts" in rendered(bound)
    assert rendered(bound, enable_thinking=True) == rendered(bound)


@pytest.mark.parametrize("kwargs", [{}, None])
def test_without_arguments_a_template_stays_as_it_is(kwargs):
    opened = tokenizer()
    bind_template_kwargs(opened, kwargs)
    assert opened.chat_template == TEMPLATE
    assert template_kwargs(opened) == {}


def test_arguments_are_saved_with_the_tokenizer(tmp_path):
    bound = tokenizer(enable_thinking=False)
    bound.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert rendered(again) == rendered(bound)
    assert template_kwargs(again) == {"enable_thinking": False}


def test_a_later_value_replaces_an_earlier_one_and_leaves_the_others():
    bound = tokenizer(enable_thinking=False, date="May")
    bind_template_kwargs(bound, {"enable_thinking": True})
    assert template_kwargs(bound) == {"date": "May", "enable_thinking": True}
    assert bound.chat_template == tokenizer(date="May", enable_thinking=True).chat_template


@pytest.mark.parametrize("name", ["enable_thinkng", "messages", "bos_token", "text", "message"])
def test_what_is_no_argument_of_the_template_is_refused(name):
    with pytest.raises(RecipeError, match=f"`{name}`, and .* has no such argument") as refused:
        tokenizer(**{name: False})
    assert "Its arguments: date, enable_thinking." in str(refused.value)


def test_a_value_that_json_lacks_is_refused():
    for value in (datetime.date(2026, 1, 1), float("nan"), (1, 2)):
        with pytest.raises(RecipeError, match="which is not a value of JSON"):
            tokenizer(date=value)


def test_arguments_need_one_readable_template():
    with pytest.raises(RecipeError, match="has no chat template"):
        tokenizer(None, date="x")
    with pytest.raises(RecipeError, match="has several chat templates"):
        tokenizer({"default": TEMPLATE, "tool_use": TEMPLATE}, date="x")
    with pytest.raises(RecipeError, match="cannot be read: "):
        tokenizer("{% if date %}", date="x")


def test_differences_name_the_argument():
    off, on, none = (tokenizer(**k) for k in ({"date": "a"}, {"date": "b"}, {}))
    assert template_differences(off, off) == []
    assert template_differences(off, on) == ["`date` of `chat_template_kwargs` is 'a' and 'b'"]
    assert template_differences(none, on) == ["`date` of `chat_template_kwargs` is not set and 'b'"]
    assert template_differences(off, tokenizer("{{ messages }}")) == [
        "their chat templates are not the same text"
    ]


def test_of_two_templates_only_the_arguments_that_both_have_are_compared():
    other = tokenizer("{{ messages }}{{ date }}", date="b")
    assert kwargs_differences(tokenizer(enable_thinking=False, date="b"), other) == []
    assert kwargs_differences(tokenizer(enable_thinking=False), other) == [
        "`date` of `chat_template_kwargs` is not set and 'b'"
    ]
