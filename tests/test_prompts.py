"""A prompt in each of its forms: what people read, what the model reads, and padded batches."""

import subprocess
import sys

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.prompts import pad, position_ids, prompt_ids, prompt_text, spoken_turns

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}


def test_prompt_text_is_readable() -> None:
    assert prompt_text("Hi") == "Hi"
    assert prompt_text([USER]) == "Hi"
    assert prompt_text([USER, GOOD, USER]) == "Human: Hi\n\nAssistant: Hello!\n\nHuman: Hi"


def test_a_readable_prompt_is_taken_apart_by_turns() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert spoken_turns(prompt_text([system, USER, GOOD, USER])) == [
        ("System", "Be brief."),
        ("Human", "Hi"),
        ("Assistant", "Hello!"),
        ("Human", "Hi"),
    ]
    assert spoken_turns("What did the Human: say?") == [("", "What did the Human: say?")]
    assert spoken_turns("") == [("", "")]


def test_a_mask_comes_from_lengths_even_where_padding_is_a_real_token():
    ids, mask = pad([[7, 7], [7]], 7, left=True)
    assert ids.tolist() == [[7, 7], [7, 7]]
    assert mask.tolist() == [[True, True], [False, True]]
    assert position_ids(mask).tolist() == [[0, 1], [0, 0]]


def test_a_conversation_without_a_chat_template_is_refused():
    tokenizer = open_tokenizer("tiny")
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        prompt_ids(tokenizer, [{"role": "user", "content": "hello"}])


def test_importing_prompts_does_not_import_torch():
    code = "import sys, rlhf_recipes.prompts; sys.stdout.write(' '.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(ran.stdout.split())
