"""Filter the rows of a dataset into usable pairs, and count the dropped rows by reason."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqdm.auto import tqdm

from rlhf_recipes.preferences.files import RawRow
from rlhf_recipes.preferences.lengths import PROGRESS_DELAY, LengthCounter
from rlhf_recipes.preferences.reader import Reader
from rlhf_recipes.preferences.shapes import REASONS, Pair, Reason, UnusableRow
from rlhf_recipes.preferences.turns import parse_pair
from rlhf_recipes.prompts import completion_text

EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 60
MIN_PAIRS_FOR_A_PATTERN = 5  # fewer pairs that repeat their prompt may do so by chance
MIN_BATCH = 256  # minimum number of pairs to count at a time


@dataclass
class Dropped:
    """Number of rows of each split that were dropped for one reason, and the first few of them."""

    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("train", "validation"), 0))
    examples: list[dict[str, str]] = field(default_factory=list)


class RowFilter:
    """Turns rows into pairs and drops those that cannot be used.

    Args:
        reader: Reads the values of a row in its format.
        count_lengths: Counts the lengths that `max_length` limits.
        max_length: Maximum length of a prompt plus its longer completion; None for no limit.

    Attributes:
        rows: Number of rows read, by split.
        dropped: Dropped rows, by reason.
        notes: What was changed in all pairs of a split, as sentences for the user.
    """

    def __init__(
        self, reader: Reader, count_lengths: LengthCounter, max_length: int | None
    ) -> None:
        self.dropped: dict[Reason, Dropped] = {reason: Dropped() for reason in REASONS}
        self.rows = dict.fromkeys(("train", "validation"), 0)
        self.notes: list[str] = []
        self._reader = reader
        self._count_lengths = count_lengths
        self._max_length = max_length

    def parse(self, rows: Iterable[RawRow], split: str) -> list[Pair]:
        """Return the usable pairs of a split, without their lengths."""
        pairs = []
        for row in tqdm(rows, desc=f"Reading {split}", unit=" rows", delay=PROGRESS_DELAY):
            self.rows[split] += 1
            try:
                values = self._reader(row.fields, row.location)
                pairs.append(parse_pair(values, row.source, row.location, self._reader.ignored))
            except UnusableRow as unusable:
                texts = (row.fields.get(name) for name in ("chosen", "rejected"))
                self._drop(unusable.reason, split, row.location, *texts)
        if self._reader.has_prompt_column:  # a row without a prompt then lacks one
            pairs = self._filter(pairs, lambda p: not p.cut, "no_prompt", split)
        if len(pairs) >= MIN_PAIRS_FOR_A_PATTERN and all(map(_repeats_its_prompt, pairs)):
            self.notes.append(
                f"all completions of {split} begin with their prompt, which is removed from them"
            )
            pairs = [_without_repetition(pair) for pair in pairs]
        return pairs

    def within_max_length(self, pairs: Sequence[Pair], split: str) -> list[Pair]:
        """Count the length of every pair, and return those of at most `max_length`."""
        for pair, lengths in zip(pairs, self._count_lengths(pairs), strict=True):
            pair.lengths = lengths
        limit = self._max_length
        return self._filter(
            pairs, lambda p: limit is None or p.lengths.longest <= limit, "too_long", split
        )

    def first_within_max_length(
        self, pairs: Sequence[Pair], count: int, split: str
    ) -> tuple[list[Pair], int]:
        """Return the first pairs within `max_length`, at most `count`.

        Lengths are counted only until there are enough. The second result is the number of pairs
        whose length was not counted.
        """
        usable: list[Pair] = []
        start = 0
        while len(usable) < count and start < len(pairs):
            batch = pairs[start : start + max(count - len(usable), MIN_BATCH)]
            usable += self.within_max_length(batch, split)
            start += len(batch)
        return usable[:count], len(pairs) - start

    def without_train_prompts(self, pairs: list[Pair], train: list[Pair]) -> list[Pair]:
        """Return the validation pairs whose first user turn is in no training pair."""
        train_keys = {pair.first_turn_key for pair in train}
        return self._filter(
            pairs, lambda p: p.first_turn_key not in train_keys, "prompt_in_train", "validation"
        )

    def _filter(
        self, pairs: Sequence[Pair], is_usable: Callable[[Pair], bool], reason: Reason, split: str
    ) -> list[Pair]:
        usable = []
        for pair in pairs:
            if is_usable(pair):
                usable.append(pair)
            else:
                self._drop(reason, split, pair.location, pair.chosen, pair.rejected)
        return usable

    def _drop(
        self, reason: Reason, split: str, location: str, chosen: object, rejected: object
    ) -> None:
        dropped = self.dropped[reason]
        dropped.count[split] += 1
        if len(dropped.examples) < EXAMPLES_PER_REASON:
            dropped.examples.append(
                {"row": location, "chosen": _ending(chosen), "rejected": _ending(rejected)}
            )


def _ending(text: object) -> str:
    """Return the last characters of a text or of its last message; raw rows may have any type."""
    if isinstance(text, list) and text:
        text = text[-1].get("content") if isinstance(text[-1], Mapping) else text[-1]
    ending = " ".join(str(text).split())
    return ending if len(ending) <= EXAMPLE_CHARACTERS else "…" + ending[-EXAMPLE_CHARACTERS:]


def _repeats_its_prompt(pair: Pair) -> bool:
    if not isinstance(pair.prompt, str) or pair.cut:
        return False
    texts = (completion_text(pair.chosen), completion_text(pair.rejected))
    return all(text.startswith(pair.prompt) and text != pair.prompt for text in texts)


def _without_repetition(pair: Pair) -> Pair:
    size = len(pair.prompt)
    return replace(pair, chosen=pair.chosen[size:], rejected=pair.rejected[size:])
