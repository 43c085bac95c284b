"""Find out which rows a stage's trainer uses whole, truncates at `max_length`, or drops.

`--plan` and the run call the same functions, and the run trains on the rows that they select.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.lengths import PROGRESS_DELAY
from rlhf_recipes.prompts import Prompt, ids_to_complete, prompt_ids, template_ids

if TYPE_CHECKING:
    from datasets import Dataset


CONTEXT = 24
"""Characters shown on either side of a special token."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Rows:
    """Number of rows of a split that a stage uses, and what happens to the others.

    Args:
        used: Rows used, whole or truncated.
        longest: Tokens of the longest used row, prompt plus completion, after truncation.
        cut: Used rows that are truncated at `max_length`.
        too_long: Rows dropped because of `max_length`.
        identical: Rows dropped because their two completions are the same tokens.
        indices: Indices of the used rows; empty for prompts, which are all used.
        special_tokens: Rows whose texts contain a special token of the tokenizer.
        example: The first of these in words.
    """

    used: int
    longest: int
    cut: int = 0
    too_long: int = 0
    identical: int = 0
    indices: tuple[int, ...] = field(default=(), repr=False)
    special_tokens: int = 0
    example: str = field(default="", repr=False)

    def counts(self) -> dict[str, int]:
        """Return the counts with the keys of run.json."""
        names = ("used", "cut", "too_long", "identical", "longest", "special_tokens")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> list[str]:
        """Return the counts in words, one line each."""
        lines = [f"{self.used:,}, up to {self.longest:,} tokens"]
        for count, meaning in (
            (self.cut, "truncated at max_length"),
            (self.too_long, "dropped: too long for max_length"),
            (self.identical, "dropped: both completions are the same tokens"),
        ):
            lines += [f"- {count:,} {meaning}"] if count else []
        return lines


@dataclass(frozen=True)
class _Tokenized:
    """Token ids of a row as TRL's trainers compute them: prompt and completion in one list."""

    prompt: int  # number of tokens that all lists share with the prompt
    completions: tuple[list[int], ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.completions))


def pair_rows(
    stage: str, name: str, split: "Dataset", tokenizer: PreTrainedTokenizerBase, training: Any
) -> Rows:
    """Return the pairs that the stage can use, tokenized as TRL's trainers do.

    RewardTrainer drops a pair if the prompt with either completion exceeds `max_length`. DPOTrainer
    truncates it, and drops a pair whose prompt alone fills `max_length`; with `keep_end` it
    truncates from the left and drops none.

    Args:
        name: The split's name.

    Raises RecipeError if no pair is left.
    """
    pairs = list(_tokenized(name, split, tokenizer, ("chosen", "rejected")))
    limit = training.max_length
    mode = "drop" if stage == "reward" else training.truncation_mode
    indices, sizes, cut, too_long = [], [], 0, 0
    for index, pair in enumerate(pairs):
        over = limit is not None and pair.longest > limit
        if limit is not None and (over if mode == "drop" else _is_filled(pair, limit, mode)):
            too_long += 1
        elif len({tuple(_cut(ids, limit, mode)) for ids in pair.completions}) > 1:
            indices.append(index)
            sizes.append(min(pair.longest, limit) if over else pair.longest)
            cut += over
    identical = len(pairs) - too_long - len(indices)
    if not indices:
        raise RecipeError(_no_pairs(name, pairs, limit, too_long, identical))
    texts = _row_texts(split, tokenizer, ("chosen", "rejected"))
    special, example = _special_tokens(texts, tokenizer)
    return Rows(
        len(indices), max(sizes), cut, too_long, identical, tuple(indices), special, example
    )


def completion_rows(
    name: str, split: "Dataset", tokenizer: PreTrainedTokenizerBase, training: Any
) -> Rows:
    """Return the chosen completions that SFT can use, tokenized as SFTTrainer does.

    It truncates a row at `max_length`, and drops one whose prompt alone fills `max_length`; with
    `keep_end` it truncates from the left and drops none.

    Args:
        name: The split's name.

    Raises RecipeError if no row is left.
    """
    rows = list(_tokenized(name, split, tokenizer, ("chosen",)))
    limit = math.inf if training.max_length is None else training.max_length
    mode = training.truncation_mode
    indices = tuple(i for i, row in enumerate(rows) if not _is_filled(row, limit, mode))
    sizes = [rows[index].longest for index in indices]
    if not indices:
        raise RecipeError(
            f"`max_length` is {limit:,} tokens, and each of {len(rows):,} {name} prompts fills it "
            "alone, so no completion would be learned. Raise `max_length`: half of the rows fit "
            f"in {median_high(row.longest for row in rows):,} tokens, and all of them in "
            f"{max(row.longest for row in rows):,}."
        )
    special, example = _special_tokens(_row_texts(split, tokenizer, ("chosen",)), tokenizer)
    return Rows(
        len(indices),
        longest=int(min(max(sizes), limit)),
        cut=sum(size > limit for size in sizes),
        too_long=len(rows) - len(indices),
        indices=indices,
        special_tokens=special,
        example=example,
    )


def prompt_rows(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_completion_length: int
) -> Rows:
    """Return the rows of prompts, all of which are used, the longest with a whole completion."""
    progress = _progress(prompts, "Tokenizing prompts", len(prompts))
    longest = max(len(ids_to_complete(tokenizer, prompt)) for prompt in progress)
    special, example = _special_tokens(map(_texts, prompts), tokenizer)
    return Rows(
        len(prompts), longest + max_completion_length, special_tokens=special, example=example
    )


def check_context(config: PretrainedConfig, rows: Mapping[str, Rows]) -> None:
    """Raise RecipeError if a row has more tokens than the base has positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    for split, counts in rows.items():
        if positions is not None and counts.longest > positions:
            raise RecipeError(
                f"The longest {split} row has {counts.longest} tokens with its completion, and the "
                f"base takes {positions}. Lower `max_length` or `max_completion_length`, or drop "
                "long rows with `max_length` of prepare_data.py."
            )


def plain_text_notes(split: "Dataset", tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return a warning if the data is plain text and the model has a chat template."""
    if not isinstance(split[0]["prompt"], str) or tokenizer.chat_template is None:
        return ()
    return (
        "Warning: the data is plain text and the tokenizer has a chat template, which is not "
        "applied to plain text. The model reads the texts without the markers of turns that it "
        "was tuned on. Prepare conversations if it should respond as a chat model.",
    )


def special_token_notes(rows: Mapping[str, Rows]) -> tuple[str, ...]:
    """Return a warning for every split with texts that contain a special token."""
    return tuple(
        f"Warning: {counts.special_tokens:,} {split} rows contain a special token of the tokenizer "
        f"in their texts, the first of them {counts.example}. The model reads the token itself "
        "there, which may end or begin a turn, and not its characters. Remove such tokens from "
        "the data, unless they are intended."
        for split, counts in rows.items()
        if counts.special_tokens
    )


def rows_text(rows: Mapping[str, Rows], notes: Iterable[str]) -> str:
    """Return what a run prints about its rows before training."""
    lines = [
        f"{split + ' rows' if number == 0 else '':<17} {line}"
        for split, counts in rows.items()
        for number, line in enumerate(counts.lines())
    ]
    return "\n".join([*lines, *notes])


def _progress(rows: Iterable[Row], title: str, total: int) -> Iterable[Row]:
    """Wrap rows in a progress bar, shown on the first process if they take long."""
    not_first = os.getenv("RANK", "0") != "0"
    progress: Iterable[Row] = tqdm(
        rows, title, total, unit=" rows", delay=PROGRESS_DELAY, disable=not_first
    )
    return progress


def _special_tokens(
    rows: Iterable[Iterable[str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, str]:
    """Return the number of rows whose texts contain a special token, and the first in words."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    if not tokens:
        return 0, ""
    pattern = re.compile("|".join(map(re.escape, tokens)))
    count, example = 0, ""
    for number, texts in enumerate(rows, start=1):
        match = next((match for text in texts if (match := pattern.search(text))), None)
        count += match is not None
        if match is not None and not example:
            context = match.string[max(0, match.start() - CONTEXT) : match.end() + CONTEXT]
            example = f"{match[0]} in row {number}: {context!r}"
    return count, example


def _row_texts(
    split: "Dataset", tokenizer: PreTrainedTokenizerBase, columns: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the texts of each row, without the EOS token that ends a plain-text completion."""
    end = str(tokenizer.eos_token)
    for row in split:
        completions = tuple(row[column] for column in columns)
        if isinstance(row["prompt"], str):
            completions = tuple(text.removesuffix(end) for text in completions)
        yield tuple(text for value in (row["prompt"], *completions) for text in _texts(value))


def _texts(value: Prompt) -> list[str]:
    return [value] if isinstance(value, str) else [message["content"] for message in value]


def _tokenized(
    name: str, split: "Dataset", tokenizer: PreTrainedTokenizerBase, columns: Sequence[str]
) -> Iterable[_Tokenized]:
    """Yield the token ids of each row with the completion in each of the columns."""
    for row in _progress(split, f"Tokenizing {name} rows", len(split)):
        prompt, completions = row["prompt"], [row[column] for column in columns]
        if isinstance(prompt, str):
            end = str(tokenizer.eos_token)
            texts = [prompt + text + end * (not text.endswith(end)) for text in completions]
            whole = tuple(prompt_ids(tokenizer, text) for text in texts)
        else:
            whole = tuple(
                template_ids(tokenizer, [*prompt, *messages], add_generation_prompt=False)
                for messages in completions
            )
        ids = prompt_ids(tokenizer, prompt)
        yield _Tokenized(min(_common_prefix(ids, row_ids) for row_ids in whole), whole)


def _common_prefix(first: list[int], second: list[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _is_filled(row: _Tokenized, limit: float, mode: str) -> bool:
    """Whether SFTTrainer and DPOTrainer truncate the completions to nothing."""
    return mode == "keep_start" and row.prompt >= limit


def _cut(ids: list[int], limit: int | None, mode: str) -> list[int]:
    if limit is None:
        return ids
    return ids[-limit:] if mode == "keep_end" else ids[:limit]


def _no_pairs(
    name: str, pairs: list[_Tokenized], limit: int | None, too_long: int, identical: int
) -> str:
    """Return the message for a split without a usable pair."""
    reasons = [
        f"{count:,} {reason}"
        for count, reason in (
            (too_long, "are too long for it"),
            (identical, "have two completions that are the same tokens within it"),
        )
        if count
    ]
    if limit is None or (not too_long and all(p.longest <= limit for p in pairs)):
        return (
            f"None of the {len(pairs):,} {name} pairs can be used: in each, chosen and rejected "
            "are the same tokens to this model. Check the data and the chat template."
        )
    sizes = [pair.longest for pair in pairs]
    return (
        f"`max_length` is {limit:,} tokens, and none of {len(pairs):,} {name} pairs can be used: "
        f"{' and '.join(reasons)}. Raise `max_length`: half of the pairs fit in "
        f"{median_high(sizes):,} tokens, and all of them in {max(sizes):,}."
    )
