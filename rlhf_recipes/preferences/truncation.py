"""What a stage's trainer makes of its rows: used whole, cut at `max_length`, or left out.

`--plan` and the run call the same functions, and the run trains on the rows that they keep.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.lengths import PATIENCE
from rlhf_recipes.prompts import Prompt, ids_to_complete, prompt_ids, template_ids

if TYPE_CHECKING:
    from datasets import Dataset


AROUND = 24
"""Characters shown on either side of a special token."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Rows:
    """How many rows of a split are used, and what happens to the others.

    `longest` is the most tokens of a row in use: a prompt and its answer, cut where they are cut.
    `cut` rows are used without what is past `max_length`; `too_long` ones are left out, and so are
    `identical` ones, whose two answers are the same tokens and teach nothing. `kept` are the
    indices of the rows in use. `special_tokens` rows hold one of the tokenizer in their texts, the
    first of them as the `example` says.
    """

    used: int
    longest: int
    cut: int = 0
    too_long: int = 0
    identical: int = 0
    kept: tuple[int, ...] = field(default=(), repr=False)
    special_tokens: int = 0
    example: str = field(default="", repr=False)

    def counts(self) -> dict[str, int]:
        """The counts, for run.json."""
        names = ("used", "cut", "too_long", "identical", "longest", "special_tokens")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> list[str]:
        """The counts in words, one line per kind."""
        lines = [f"{self.used:,}, up to {self.longest:,} tokens"]
        for count, meaning in (
            (self.cut, "cut at max_length"),
            (self.too_long, "left out: too long for max_length"),
            (self.identical, "left out: both answers are the same tokens"),
        ):
            lines += [f"- {count:,} {meaning}"] if count else []
        return lines


@dataclass(frozen=True)
class _Pair:
    """Token ids of a pair as TRL's trainers make them: the answers include the prompt."""

    prompt: int  # tokens that the answers share with the prompt
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def fit_pairs(
    stage: str, name: str, split: "Dataset", tokenizer: PreTrainedTokenizerBase, training: Any
) -> Rows:
    """Count the pairs that the stage can use, as TRL's trainer tokenizes them.

    RewardTrainer drops a pair of which either answer, with its prompt, is over `max_length`.
    DPOTrainer cuts there and drops a pair whose prompt alone fills it; under `keep_end` it cuts
    from the left and drops none. RecipeError if no pair is left.

    Args:
        name: The split's name.
    """
    pairs = list(_tokenized(name, split, tokenizer))
    limit = training.max_length
    mode = "drop" if stage == "reward" else training.truncation_mode
    kept, sizes, cut, too_long = [], [], 0, 0
    for index, pair in enumerate(pairs):
        over = limit is not None and pair.longest > limit
        if limit is not None and (over if mode == "drop" else _is_filled(pair, limit, mode)):
            too_long += 1
        elif _cut(pair.chosen, limit, mode) != _cut(pair.rejected, limit, mode):
            kept.append(index)
            sizes.append(min(pair.longest, limit) if over else pair.longest)
            cut += over
    identical = len(pairs) - too_long - len(kept)
    if not kept:
        raise RecipeError(_nothing_left(name, pairs, limit, too_long, identical))
    special, example = _with_special_tokens(_pair_texts(split, tokenizer), tokenizer)
    return Rows(len(kept), max(sizes), cut, too_long, identical, tuple(kept), special, example)


def prompt_rows(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_completion_length: int
) -> Rows:
    """The prompts, none of which is left out, and the longest with a whole completion."""
    shown = _progress(prompts, "Tokenizing prompts", len(prompts))
    longest = max(len(ids_to_complete(tokenizer, prompt)) for prompt in shown)
    special, example = _with_special_tokens(map(_texts, prompts), tokenizer)
    return Rows(
        len(prompts), longest + max_completion_length, special_tokens=special, example=example
    )


def check_context(config: PretrainedConfig, rows: Mapping[str, Rows]) -> None:
    """Raise RecipeError where a row has more tokens than the base has positions."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    for split, counts in rows.items():
        if positions is not None and counts.longest > positions:
            raise RecipeError(
                f"The longest {split} row has {counts.longest} tokens with its completion, and the "
                f"base takes {positions}. Lower `max_length` or `max_completion_length`, or leave "
                "long rows out with `max_length` of prepare_data.py."
            )


def plain_text_notes(split: "Dataset", tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What to tell the user of plain text for a model that has a chat template."""
    if not isinstance(split[0]["prompt"], str) or tokenizer.chat_template is None:
        return ()
    return (
        "Warning: the data are plain text and the tokenizer has a chat template. The template is "
        "not applied: the model reads the texts as they are, without the marks of turns that it "
        "was tuned on. Prepare conversations if it is to answer as a chat model.",
    )


def special_token_notes(rows: Mapping[str, Rows]) -> tuple[str, ...]:
    """What to tell the user of texts that a tokenizer reads as more than text."""
    return tuple(
        f"Warning: {counts.special_tokens:,} {split} rows hold a special token of the tokenizer in "
        f"their texts, the first of them {counts.example}. The model reads the token itself there, "
        "which ends a turn or begins one, and not its characters. Take such tokens out of the "
        "data, unless they are meant."
        for split, counts in rows.items()
        if counts.special_tokens
    )


def rows_text(rows: Mapping[str, Rows], notes: Iterable[str]) -> str:
    """What a run prints of its rows before it trains."""
    lines = [
        f"{split + ' rows' if number == 0 else '':<17} {line}"
        for split, counts in rows.items()
        for number, line in enumerate(counts.lines())
    ]
    return "\n".join([*lines, *notes])


def _progress(rows: Iterable[Row], title: str, total: int) -> Iterable[Row]:
    """The rows, with a progress bar on the first process where they take a while."""
    other = os.getenv("RANK", "0") != "0"
    shown: Iterable[Row] = tqdm(rows, title, total, unit=" rows", delay=PATIENCE, disable=other)
    return shown


def _with_special_tokens(
    rows: Iterable[Iterable[str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, str]:
    """The number of rows whose texts hold a special token, and the first of them in words."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    if not tokens:
        return 0, ""
    pattern = re.compile("|".join(map(re.escape, tokens)))
    count, example = 0, ""
    for number, texts in enumerate(rows, start=1):
        held = next(((text, found) for text in texts if (found := pattern.search(text))), None)
        count += held is not None
        if held is not None and not example:
            text, found = held
            around = text[max(0, found.start() - AROUND) : found.end() + AROUND]
            example = f"{found[0]} in row {number}: {around!r}"
    return count, example


def _pair_texts(split: "Dataset", tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, ...]]:
    """The texts of each pair, without an end-of-sequence token that a plain answer ends with."""
    end = str(tokenizer.eos_token)
    for row in split:
        answers = (row["chosen"], row["rejected"])
        if isinstance(row["prompt"], str):
            answers = tuple(answer.removesuffix(end) for answer in answers)
        yield tuple(text for part in (row["prompt"], *answers) for text in _texts(part))


def _texts(part: Prompt) -> list[str]:
    return [part] if isinstance(part, str) else [message["content"] for message in part]


def _tokenized(name: str, split: "Dataset", tokenizer: PreTrainedTokenizerBase) -> Iterable[_Pair]:
    for row in _progress(split, f"Tokenizing {name} pairs", len(split)):
        prompt, answers = row["prompt"], (row["chosen"], row["rejected"])
        if isinstance(prompt, str):
            end = str(tokenizer.eos_token)
            texts = [prompt + text + end * (not text.endswith(end)) for text in answers]
            chosen, rejected = (prompt_ids(tokenizer, text) for text in texts)
        else:
            chosen, rejected = (
                template_ids(tokenizer, [*prompt, *messages], add_generation_prompt=False)
                for messages in answers
            )
        opening = prompt_ids(tokenizer, prompt)
        shared = min(_common(opening, chosen), _common(opening, rejected))
        yield _Pair(shared, chosen, rejected)


def _common(first: list[int], second: list[int]) -> int:
    """Number of tokens that two sequences share at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _is_filled(pair: _Pair, limit: int, mode: str) -> bool:
    """Whether nothing of the answers is left where DPOTrainer cuts."""
    return mode == "keep_start" and pair.prompt >= limit


def _cut(ids: list[int], limit: int | None, mode: str) -> list[int]:
    if limit is None:
        return ids
    return ids[-limit:] if mode == "keep_end" else ids[:limit]


def _nothing_left(
    name: str, pairs: list[_Pair], limit: int | None, too_long: int, identical: int
) -> str:
    found = [
        f"{count:,} {what}"
        for count, what in (
            (too_long, "are too long for it"),
            (identical, "have two answers that are the same tokens within it"),
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
        f"{' and '.join(found)}. Raise `max_length`: half of the pairs fit in "
        f"{median_high(sizes):,} tokens, and all of them in {max(sizes):,}."
    )
