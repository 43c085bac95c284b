"""How long the texts of preference pairs are: in a model's tokens, or in words."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tqdm.auto import tqdm

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.shapes import Lengths, Pair, Text
from rlhf_recipes.prompts import (
    RENDER_ERRORS,
    Messages,
    completion_text,
    prompt_text,
    template_error,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
PATIENCE = 3  # seconds before progress is shown

# Scripts that write no spaces between words: Thai to Lao, Myanmar, Khmer, kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
# What `_WORD` tells apart, for each byte of a code that Western texts fit in: parts of words, marks
# and spaces. Counting bytes is three times as fast.
_CODE = "cp1252"
_CHARACTERS = bytes(range(256)).decode(_CODE, errors="replace")
_KINDS = re.sub(r"\s", " ", re.sub(r"[^\w\s]", ".", re.sub(r"\w", "w", _CHARACTERS))).encode()


class Ruler(Protocol):
    """Measures pairs in its unit, and shows one as it measures it: prompt, chosen, rejected."""

    unit: str

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]: ...
    def shown(self, pair: Pair) -> tuple[str, str, str]: ...


class WordRuler:
    """Counts words and punctuation marks, an estimate that needs no tokenizer.

    "I can't." has five: I, can, ', t and the full stop. Where a script writes no spaces, as Chinese
    does, each character counts. English has somewhat more tokens than that; roles and other marks
    of a chat template are not counted.
    """

    unit = "words and punctuation marks"

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]:
        return [
            Lengths(
                _words(prompt_text(pair.prompt)),
                _words(completion_text(pair.chosen)),
                _words(completion_text(pair.rejected)),
            )
            for pair in pairs
        ]

    def shown(self, pair: Pair) -> tuple[str, str, str]:
        """The texts, each turn with its role; what a chat template adds needs a model."""
        return _with_roles(pair.prompt), _with_roles(pair.chosen), _with_roles(pair.rejected)


class TokenRuler:
    """Counts tokens as TRL's trainers do: with the chat template, or with a closing EOS for text.

    The prompt's length includes the header of the answer, so prompt plus answer is the whole.
    """

    def __init__(self, name: str, chat_template: str | None, revision: str | None = None) -> None:
        # Imported here because torch comes with it, which only this way of measuring needs.
        from rlhf_recipes.models.loading import open_tokenizer

        self.unit = f"tokens of {name}"
        self._name = name
        self._tokenizer: PreTrainedTokenizerBase = open_tokenizer(name, chat_template, revision)
        special = [re.escape(token) for token in self._tokenizer.all_special_tokens]
        self._special = re.compile("|".join(sorted(special, key=len, reverse=True)) or "(?!)")

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]:
        lengths: list[Lengths] = []
        starts = range(0, len(pairs), BATCH)
        for start in tqdm(starts, desc="Counting tokens", unit=" batches", delay=PATIENCE):
            lengths += self._batch(pairs[start : start + BATCH])
        return lengths

    def shown(self, pair: Pair) -> tuple[str, str, str]:
        """The texts with all that the chat template or, for plain text, the trainer adds."""
        prompt, chosen, rejected = (texts[0] for texts in self._texts([pair]))
        if isinstance(pair.prompt, str):
            eos = str(self._tokenizer.eos_token or "")
            return prompt, chosen.removeprefix(prompt) + eos, rejected.removeprefix(prompt) + eos
        return prompt, chosen.removeprefix(prompt), rejected.removeprefix(prompt)

    def _batch(self, pairs: Sequence[Pair]) -> list[Lengths]:
        prompts, chosen, rejected = self._texts(pairs)
        plain = isinstance(pairs[0].prompt, str)
        heads = [0] * len(pairs)
        if not plain:
            # A special token splits text for good, so what is before the last one is counted once.
            cuts = [
                self._last_special(*texts) for texts in zip(prompts, chosen, rejected, strict=True)
            ]
            heads = self._count([p[:cut] for p, cut in zip(prompts, cuts, strict=True)], plain)
            prompts, chosen, rejected = (
                [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
                for texts in (prompts, chosen, rejected)
            )
        counts = [self._count(texts, plain) for texts in (prompts, chosen, rejected)]
        return [
            Lengths(head + p, c - p + plain, r - p + plain)
            for head, p, c, r in zip(heads, *counts, strict=True)
        ]

    def _texts(self, pairs: Sequence[Pair]) -> tuple[list[str], list[str], list[str]]:
        """Prompts, and prompts with each answer, as they are tokenized."""
        prompts = self._rendered([p.prompt for p in pairs], answered=False)
        chosen = self._rendered([_joined(p.prompt, p.chosen) for p in pairs], answered=True)
        rejected = self._rendered([_joined(p.prompt, p.rejected) for p in pairs], answered=True)
        return prompts, chosen, rejected

    def _last_special(self, prompt: str, *texts: str) -> int:
        """Where the last special token of a prompt stands that all the texts begin with; or 0."""
        start = 0
        for found in self._special.finditer(prompt, max(0, len(prompt) - 200)):
            start = found.start()
        # A token that takes in the spaces before it would take those of the other side.
        apart = start == 0 or not prompt[start - 1].isspace()
        return start if apart and all(t.startswith(prompt[:start]) for t in texts) else 0

    def _count(self, texts: Sequence[str], plain: bool) -> list[int]:
        # A chat template writes its special tokens itself; in plain text the tokenizer adds them.
        encoded = self._tokenizer(
            text=list(texts),
            add_special_tokens=plain,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def _rendered(self, texts: Sequence[Text], answered: bool) -> list[str]:
        conversations = [text for text in texts if not isinstance(text, str)]
        if not conversations:
            return [text for text in texts if isinstance(text, str)]
        if self._tokenizer.chat_template is None:
            raise RecipeError(
                f"The data are conversations and `{self._name}` has no chat template, so their "
                "tokens cannot be counted. Set `chat_template` to a Jinja file."
            )
        try:
            return self._render(conversations, answered)
        except RENDER_ERRORS:
            for messages in conversations:
                self._check_renders(messages, answered)
            raise

    def _render(self, conversations: list[Messages], answered: bool) -> list[str]:
        return list(
            self._tokenizer.apply_chat_template(
                conversations, tokenize=False, add_generation_prompt=not answered
            )
        )

    def _check_renders(self, messages: Messages, answered: bool) -> None:
        try:
            self._render([messages], answered)
        except RENDER_ERRORS as error:
            raise template_error(self._name, messages, error) from error


def _words(text: str) -> int:
    try:
        kinds = b" " + text.encode(_CODE).translate(_KINDS)
    except UnicodeEncodeError:
        return len(_WORD.findall(text))
    return kinds.count(b" w") + kinds.count(b".w") + kinds.count(b".")


def _with_roles(text: Text) -> str:
    return (
        text if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
    )


def _joined(prompt: Text, answer: Text) -> Text:
    if isinstance(prompt, str):
        return prompt + completion_text(answer)
    assert not isinstance(answer, str)
    return [*prompt, *answer]
