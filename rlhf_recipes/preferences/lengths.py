"""How long the texts of preference pairs are: in a model's tokens, or in words."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from jinja2 import TemplateError

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.shapes import Lengths, Messages, Pair, Text, answer_text, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000

_WORD = re.compile(r"\w+|[^\w\s]")


class Ruler(Protocol):
    """Measures pairs in its unit."""

    unit: str

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]: ...


class WordRuler:
    """Counts words and punctuation marks, an estimate that needs no tokenizer.

    "I can't." has five: I, can, ', t and the full stop. English has somewhat more tokens than
    that; roles and other marks of a chat template are not counted.
    """

    unit = "words and punctuation marks"

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]:
        return [
            Lengths(
                _words(prompt_text(pair.prompt)),
                _words(answer_text(pair.chosen)),
                _words(answer_text(pair.rejected)),
            )
            for pair in pairs
        ]


class TokenRuler:
    """Counts tokens as TRL's trainers do: with the chat template, or with a closing EOS for text.

    The prompt's length includes the header of the answer, so prompt plus answer is the whole.
    """

    def __init__(self, name: str, chat_template: str | None, revision: str | None = None) -> None:
        # Imported here because torch comes with it, which only this way of measuring needs.
        from rlhf_recipes.models import open_tokenizer

        self.unit = f"tokens of {name}"
        self._name = name
        self._tokenizer: PreTrainedTokenizerBase = open_tokenizer(name, chat_template, revision)

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]:
        lengths = []
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            prompts = self._tokens([p.prompt for p in batch], answered=False)
            chosen = self._tokens([_joined(p.prompt, p.chosen) for p in batch], answered=True)
            rejected = self._tokens([_joined(p.prompt, p.rejected) for p in batch], answered=True)
            lengths += [
                Lengths(p, c - p, r - p) for p, c, r in zip(prompts, chosen, rejected, strict=True)
            ]
        return lengths

    def _tokens(self, texts: Sequence[Text], answered: bool) -> list[int]:
        rendered = [t if isinstance(t, str) else self._render(t, answered) for t in texts]
        plain = isinstance(texts[0], str)
        # A chat template writes its special tokens itself; in plain text the tokenizer adds them.
        ids = self._tokenizer(text=rendered, add_special_tokens=plain, verbose=False)["input_ids"]
        return [len(row) + (plain and answered) for row in ids]

    def _render(self, messages: Messages, answered: bool) -> str:
        if self._tokenizer.chat_template is None:
            raise RecipeError(
                f"The data are conversations and `{self._name}` has no chat template, so their "
                "tokens cannot be counted. Set `chat_template` to a Jinja file."
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=not answered
                )
            )
        except TemplateError as error:
            raise RecipeError(
                f"The chat template of `{self._name}` refuses a conversation of roles "
                f"{[m['role'] for m in messages]}: {error}. Use another template or model."
            ) from error


def _words(text: str) -> int:
    return len(_WORD.findall(text))


def _joined(prompt: Text, answer: Text) -> Text:
    if isinstance(prompt, str):
        return prompt + answer_text(answer)
    assert not isinstance(answer, str)
    return [*prompt, *answer]
