import unicodedata

import pytest

from rlhf_recipes.evaluation.metrics.detectors import (
    echoes_prompt,
    ends_in_thinking,
    is_degenerate,
    is_empty,
    is_repetitive,
    leaks_role,
    refuses,
    repeated_fraction,
)

PROMPT = "Why is the sky blue on a clear day and red in the evening?"
LIST = "Three tips:\n\n1. Sleep well.\n2. Drink enough water.\n3. Walk a little every day."
CODE = "```python\ndef add(first, second):\n    return first + second\n\nprint(add(2, 3))\n```"


@pytest.mark.parametrize("text", ["  \n", "", "...", "🙂"])
def test_empty_fires(text):
    assert is_empty(text)


@pytest.mark.parametrize("text", ["No.", "7", "空"])
def test_empty_does_not_fire(text):
    assert not is_empty(text)


def test_rep_2_known_answer():
    # Five bigrams, two of them different: 1 - 2/5.
    assert repeated_fraction("a b a b a b".split(), 2) == pytest.approx(0.6)
    assert repeated_fraction(["a"], 4) == 0


@pytest.mark.parametrize(
    "text",
    [
        "a b " * 20,
        "It starts well, with a good first sentence. " + "And then it goes on. " * 3,
        "France. The capital of France is Paris. The capital of France is Paris. The capital of "
        "France is Paris. The capital of",
        "no no no no no no",
        "天气很好" * 6,
    ],
)
def test_repetition_fires(text):
    assert is_repetitive(text)


@pytest.mark.parametrize("text", [LIST, CODE, "No, no, no!", "It was very, very, very good.", ""])
def test_repetition_does_not_fire(text):
    assert not is_repetitive(text)


@pytest.mark.parametrize("text", ["<think>", "<think>\nWell", "<think>a</think>b<think>c"])
def test_thinking_without_an_end_fires(text):
    assert ends_in_thinking(text)


@pytest.mark.parametrize("text", ["", "Yes.", "<think>a</think>Yes.", "a</think>Yes.", "I think"])
def test_thinking_without_an_end_does_not_fire(text):
    assert not ends_in_thinking(text)


@pytest.mark.parametrize(
    "text", ["France.\n\nAssistant: France.", "Human: hello", "Yes.\n User : why?"]
)
def test_role_leak_fires(text):
    assert leaks_role(text)


@pytest.mark.parametrize(
    "text", ["Ask the human assistant: it knows.", "The user: a short history", "Humans: a story"]
)
def test_role_leak_does_not_fire(text):
    assert not leaks_role(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help",
        "I’m sorry, but I can’t help with that.",
        "I cannot provide medical advice.",
        "Unfortunately, I am not able to answer this.",
        "As an AI language model, I don't have opinions.",
        "I must decline.",
    ],
)
def test_refusal_fires(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Try to rest.",
        "I can't believe how fast it goes!",
        "You can't go wrong with tea.",
        "Plants cannot help themselves.",
        "Here is the answer. " * 20 + "I'm sorry, but I can't help",
    ],
)
def test_refusal_does_not_fire(text):
    assert not refuses(text)


@pytest.mark.parametrize(
    "text", [PROMPT, "You ask: why is the sky blue on a clear day and red in the evening? Well"]
)
def test_prompt_echo_fires(text):
    assert echoes_prompt(PROMPT, text)


@pytest.mark.parametrize(
    "text",
    [
        'You ask "why is the sky blue". Air scatters short waves more than long ones, so blue '
        "light reaches the eye from all sides.",
        "The sky",
        "",
    ],
)
def test_prompt_echo_does_not_fire(text):
    assert not echoes_prompt(PROMPT, text)


@pytest.mark.parametrize("text", ["!!!!####", "|||| ---- |||| ok", "пpивeт кaк дeлa cпacибo"])
def test_degenerate_text_fires(text):
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text", [CODE, "42", "привет как дела", "नमस्ते दुनिया, आप कैसे हैं", "日本語のテキストです"]
)
def test_degenerate_text_does_not_fire(text):
    assert not is_degenerate(text)


def test_marks_belong_to_their_letters():
    # Decomposed, each of these letters is followed by two marks.
    assert not is_degenerate(unicodedata.normalize("NFD", "ệ ể ễ ệ ể ễ"))
