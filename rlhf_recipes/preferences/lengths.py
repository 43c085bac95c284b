"""Count the lengths of preference pairs, in tokens of a model or in words."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tqdm.auto import tqdm

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.shapes import Lengths, Pair, Text
from rlhf_recipes.prompts import (
    RENDER_ERRORS,
    Messages,
    check_template,
    completion_text,
    prompt_text,
    template_error,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
PROGRESS_DELAY = 3  # seconds before a progress bar is shown

# Scripts without spaces between words: Thai to Lao, Myanmar, Khmer, kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
# The kind of each byte of Windows-1252 by `_WORD`: `w` for a word's character, `.` for a mark, or a
# space. Western texts fit in that encoding, and counting bytes is four times as fast.
_CODE = "cp1252"
_CHARACTERS = bytes(range(256)).decode(_CODE, errors="replace")
_KINDS = re.sub(r"\s", " ", re.sub(r"[^\w\s]", ".", re.sub(r"\w", "w", _CHARACTERS))).encode()


class LengthCounter(Protocol):
    """Counts the lengths of pairs in its `unit`."""

    unit: str

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]: ...

    def example(self, pair: Pair) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected as the texts that are counted."""
        ...


class WordCounter:
    """Counts words and punctuation marks, an estimate of tokens that needs no tokenizer.

    "I can't." has five: I, can, ', t and the period. In a script without spaces between words, such
    as Chinese, each character counts. English has somewhat more tokens than that. What a chat
    template adds is not counted.
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

    def example(self, pair: Pair) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected, each turn after its role."""
        return _with_roles(pair.prompt), _with_roles(pair.chosen), _with_roles(pair.rejected)


class TokenCounter:
    """Counts tokens as TRL's trainers do: with the chat template, or plain text with an EOS token.

    The prompt's length includes the header of the assistant's turn, so the lengths of prompt and
    completion add up to that of the whole.

    Args:
        name: Model whose tokenizer is used: a Hub id, a folder, or an embedded model.
        chat_template: Path of a Jinja file, or None.
        chat_template_kwargs: Values of the template's variables.
    """

    def __init__(
        self,
        name: str,
        chat_template: str | None,
        revision: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        # Imported here because it imports torch, which nothing else in this room needs.
        from rlhf_recipes.models.loading import open_tokenizer

        self.unit = f"tokens of {name}"
        self._name = name
        self._tokenizer: PreTrainedTokenizerBase = open_tokenizer(
            name, chat_template, revision, chat_template_kwargs
        )
        special = [re.escape(token) for token in self._tokenizer.all_special_tokens]
        self._special = re.compile("|".join(sorted(special, key=len, reverse=True)) or "(?!)")

    def __call__(self, pairs: Sequence[Pair]) -> list[Lengths]:
        lengths: list[Lengths] = []
        starts = range(0, len(pairs), BATCH)
        for start in tqdm(starts, desc="Counting tokens", unit=" batches", delay=PROGRESS_DELAY):
            lengths += self._batch(pairs[start : start + BATCH])
        return lengths

    def example(self, pair: Pair) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected with what the chat template or the trainer adds."""
        prompt, chosen, rejected = (texts[0] for texts in self._texts([pair]))
        if isinstance(pair.prompt, str):
            eos = str(self._tokenizer.eos_token or "")
            return prompt, chosen.removeprefix(prompt) + eos, rejected.removeprefix(prompt) + eos
        return prompt, chosen.removeprefix(prompt), rejected.removeprefix(prompt)

    def _batch(self, pairs: Sequence[Pair]) -> list[Lengths]:
        prompts, chosen, rejected = self._texts(pairs)
        plain = isinstance(pairs[0].prompt, str)
        prefix_counts = [0] * len(pairs)
        if not plain:
            # No token spans a special token, so the text before the last one is counted only once.
            cuts = [
                self._last_special(*texts) for texts in zip(prompts, chosen, rejected, strict=True)
            ]
            prefixes = [prompt[:cut] for prompt, cut in zip(prompts, cuts, strict=True)]
            prefix_counts = self._count(prefixes, plain)
            prompts, chosen, rejected = (
                [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
                for texts in (prompts, chosen, rejected)
            )
        counts = [self._count(texts, plain) for texts in (prompts, chosen, rejected)]
        return [
            Lengths(prefix + p, c - p + plain, r - p + plain)
            for prefix, p, c, r in zip(prefix_counts, *counts, strict=True)
        ]

    def _texts(self, pairs: Sequence[Pair]) -> tuple[list[str], list[str], list[str]]:
        """Return prompts, and prompts with either completion, as the texts to tokenize."""
        prompts = self._rendered([p.prompt for p in pairs], answered=False)
        chosen = self._rendered([_joined(p.prompt, p.chosen) for p in pairs], answered=True)
        rejected = self._rendered([_joined(p.prompt, p.rejected) for p in pairs], answered=True)
        return prompts, chosen, rejected

    def _last_special(self, prompt: str, *texts: str) -> int:
        """Return the start of the prompt's last special token, or 0 where it is not safe to cut.

        All texts must have the prompt's text up to there.
        """
        start = 0
        for match in self._special.finditer(prompt, max(0, len(prompt) - 200)):
            start = match.start()
        # A special token may strip the spaces before it, which would then be on the other side.
        after_space = start > 0 and prompt[start - 1].isspace()
        shared = all(text.startswith(prompt[:start]) for text in texts)
        return start if shared and not after_space else 0

    def _count(self, texts: Sequence[str], plain: bool) -> list[int]:
        # A chat template writes its special tokens; the tokenizer adds them to plain text.
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
                f"The data is conversations and `{self._name}` has no chat template, so their "
                "tokens cannot be counted. Set `chat_template` to the path of a Jinja file."
            )
        check_template(self._tokenizer)
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
        # ASCII is the part of Windows-1252 that Python encodes without a table.
        kinds = b" " + text.encode("ascii" if text.isascii() else _CODE).translate(_KINDS)
    except UnicodeEncodeError:
        return len(_WORD.findall(text))
    return kinds.count(b" w") + kinds.count(b".w") + kinds.count(b".")


def _with_roles(text: Text) -> str:
    return (
        text if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
    )


def _joined(prompt: Text, completion: Text) -> Text:
    if isinstance(prompt, str):
        return prompt + completion_text(completion)
    assert not isinstance(completion, str)
    return [*prompt, *completion]
