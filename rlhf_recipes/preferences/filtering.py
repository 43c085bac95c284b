"""Rows of a dataset sifted into pairs that can be used, with a count of those left out and why."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tqdm.auto import tqdm

from rlhf_recipes.preferences.files import RawRow
from rlhf_recipes.preferences.formats import Reader
from rlhf_recipes.preferences.lengths import PATIENCE, Ruler
from rlhf_recipes.preferences.shapes import REASONS, Pair, Reason, UnusableRow
from rlhf_recipes.preferences.turns import parse_pair
from rlhf_recipes.prompts import completion_text

EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 60
ENOUGH_TO_TELL = 5  # rows that show a custom of the whole dataset if all of them have it
LEAST_MEASURED = 256


@dataclass
class Dropped:
    """How many rows of each split were left out for one reason, and the first few of them."""

    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("train", "validation"), 0))
    examples: list[dict[str, str]] = field(default_factory=list)


class Sieve:
    """Turns rows into pairs and keeps count of those it leaves out."""

    def __init__(self, reader: Reader, ruler: Ruler, max_length: int | None) -> None:
        self.dropped: dict[Reason, Dropped] = {reason: Dropped() for reason in REASONS}
        self.rows = dict.fromkeys(("train", "validation"), 0)
        self.notes: list[str] = []
        self._reader = reader
        self._ruler = ruler
        self._max_length = max_length

    def parsed(self, rows: Iterable[RawRow], split: str) -> list[Pair]:
        """The pairs that can be used if they are short enough; their lengths are not known yet."""
        pairs = []
        for row in tqdm(rows, desc=f"Reading {split}", unit=" rows", delay=PATIENCE):
            self.rows[split] += 1
            try:
                values = self._reader(row.fields, row.place)
                pairs.append(parse_pair(values, row.source, row.place, self._reader.ignored))
            except UnusableRow as unusable:
                texts = (row.fields.get(name) for name in ("chosen", "rejected"))
                self._drop(unusable.reason, split, row.place, *texts)
        if self._reader.prompts:  # then a row without one is no text with its prompt inside
            pairs = self._keep(pairs, lambda p: not p.cut, "no_prompt", split)
        if len(pairs) >= ENOUGH_TO_TELL and all(map(_repeats_its_prompt, pairs)):
            self.notes.append(
                f"all answers of {split} begin with their own prompt, which is taken off them"
            )
            pairs = [_without_repetition(pair) for pair in pairs]
        return pairs

    def fitting(self, pairs: Sequence[Pair], split: str) -> list[Pair]:
        """The pairs that are no longer than `max_length`; all get their lengths."""
        for pair, lengths in zip(pairs, self._ruler(pairs), strict=True):
            pair.lengths = lengths
        limit = self._max_length
        return self._keep(
            pairs, lambda p: limit is None or p.lengths.longest <= limit, "too_long", split
        )

    def first_fitting(
        self, pairs: Sequence[Pair], count: int, split: str
    ) -> tuple[list[Pair], int]:
        """The first pairs that fit, at most `count`, and the number that was not looked at."""
        kept: list[Pair] = []
        start = 0
        while len(kept) < count and start < len(pairs):
            batch = pairs[start : start + max(count - len(kept), LEAST_MEASURED)]
            kept += self.fitting(batch, split)
            start += len(batch)
        return kept[:count], len(pairs) - start

    def unseen(self, pairs: list[Pair], train: list[Pair]) -> list[Pair]:
        """The validation pairs whose first user turn is in no training pair."""
        seen = {pair.first_turn_key for pair in train}
        return self._keep(
            pairs, lambda p: p.first_turn_key not in seen, "prompt_in_train", "validation"
        )

    def _keep(
        self, pairs: Sequence[Pair], fits: Callable[[Pair], bool], reason: Reason, split: str
    ) -> list[Pair]:
        kept = []
        for pair in pairs:
            if fits(pair):
                kept.append(pair)
            else:
                self._drop(reason, split, pair.place, pair.chosen, pair.rejected)
        return kept

    def _drop(
        self, reason: Reason, split: str, place: str, chosen: object, rejected: object
    ) -> None:
        dropped = self.dropped[reason]
        dropped.count[split] += 1
        if len(dropped.examples) < EXAMPLES_PER_REASON:
            dropped.examples.append(
                {"row": place, "chosen": _ending(chosen), "rejected": _ending(rejected)}
            )


def _ending(text: object) -> str:
    """The last characters of a text or of its last message: raw rows may be of any type."""
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
