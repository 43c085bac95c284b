import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.lengths import TokenCounter, WordCounter
from rlhf_recipes.preferences.shapes import Lengths, Pair

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} end {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
CONVERSATION = Pair(
    [{"role": "user", "content": "Hi there"}],
    [{"role": "assistant", "content": "Hello"}],
    [{"role": "assistant", "content": "I can't."}],
    turns=1,
    source="chat",
    location="",
)
TEXT = Pair("Hi there", " Hello", " I can't.", turns=1, source="chat", location="")


@pytest.fixture
def word_model(tmp_path: Path) -> Path:
    """A model with one token per word, and a special token in front of plain text."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "end": 1, "start": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="start $A", special_tokens=[("start", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="end"
    ).save_pretrained(tmp_path / "model")
    LlamaConfig(vocab_size=3, architectures=["LlamaForCausalLM"]).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_words_and_marks_are_counted_without_a_tokenizer() -> None:
    """Hi, there | Hello | I, can, ', t, period."""
    assert WordCounter()([CONVERSATION, TEXT]) == [Lengths(2, 1, 5)] * 2
    assert Lengths(2, 1, 5).longest == 7


def test_both_ways_of_counting_words_agree() -> None:
    """A text with a letter outside of Windows-1252 is counted by the regular expression."""
    characters = bytes(range(256)).decode("cp1252", errors="ignore")
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices(characters, k=40))
        (western,), (mixed,) = (
            WordCounter()([Pair(t, "a", "b", turns=1, source="", location="")])
            for t in (text, f"{text} \u0101")
        )
        assert mixed.prompt == western.prompt + 1


def test_tokens_of_a_conversation_include_its_template(word_model: Path, tmp_path: Path) -> None:
    """Prompt: user Hi there end assistant. Completions: Hello end; I can't. end."""
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    counter = TokenCounter(str(word_model), str(template))
    assert counter([CONVERSATION]) == [Lengths(5, 2, 3)]
    assert counter.unit == f"tokens of {word_model}"


def test_tokens_of_plain_text_include_the_closing_eos(word_model: Path) -> None:
    """Prompt: start Hi there. Completions: Hello eos; I can't. eos."""
    assert TokenCounter(str(word_model), None)([TEXT]) == [Lengths(3, 2, 3)]


def test_a_conversation_without_a_template_is_an_error(word_model: Path) -> None:
    with pytest.raises(RecipeError, match="has no chat template"):
        TokenCounter(str(word_model), None)([CONVERSATION])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% include 'other.jinja' %}", "no loader"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_a_template_that_refuses_the_roles_is_an_error(
    word_model: Path, tmp_path: Path, text: str, reason: str
) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(text)
    with pytest.raises(RecipeError, match=rf"refuses a conversation .*{reason}"):
        TokenCounter(str(word_model), str(template))([CONVERSATION])


def test_a_template_that_drops_a_message_is_an_error(word_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "last.jinja"
    template.write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(RecipeError, match="renders a conversation as"):
        TokenCounter(str(word_model), str(template))([CONVERSATION])
