"""Rows of a dataset sifted into pairs that can be used, with a count of those left out and why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.files import RawRow
from rlhf_recipes.preferences.lengths import Ruler
from rlhf_recipes.preferences.shapes import REASONS, Pair, Reason, UnusableRow, is_hh, parse_pair
from rlhf_recipes.preferences.splits import first_turn_key

COLUMNS = {"chosen", "rejected"}
EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 60


@dataclass
class Dropped:
    """How many rows of each split were left out for one reason, and the first few of them."""

    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("train", "validation"), 0))
    examples: list[dict[str, str]] = field(default_factory=list)


class Sieve:
    """Turns rows into pairs and keeps count of those it leaves out."""

    def __init__(self, ruler: Ruler, max_length: int | None) -> None:
        self.dropped: dict[Reason, Dropped] = {reason: Dropped() for reason in REASONS}
        self._ruler = ruler
        self._max_length = max_length

    def usable(self, rows: list[RawRow], split: str) -> list[Pair]:
        """The pairs that can be used, with their lengths."""
        _check_columns(rows)
        hh = is_hh(row.fields for row in rows)
        pairs = []
        for row in rows:
            try:
                pairs.append(parse_pair(row.fields, hh, row.source, row.place))
            except UnusableRow as unusable:
                texts = row.fields["chosen"], row.fields["rejected"]
                self._drop(unusable.reason, split, row.place, *texts)
        for pair, lengths in zip(pairs, self._ruler(pairs), strict=True):
            pair.lengths = lengths
        limit = self._max_length
        return self._keep(
            pairs, lambda p: limit is None or p.lengths.longest <= limit, "too_long", split
        )

    def unseen(self, pairs: list[Pair], train: list[Pair]) -> list[Pair]:
        """The validation pairs whose first user turn is in no training pair."""
        seen = {first_turn_key(pair.prompt) for pair in train}
        return self._keep(
            pairs, lambda p: first_turn_key(p.prompt) not in seen, "prompt_in_train", "validation"
        )

    def _keep(
        self, pairs: list[Pair], fits: Callable[[Pair], bool], reason: Reason, split: str
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


def _check_columns(rows: list[RawRow]) -> None:
    for row in rows:
        if not row.fields.keys() >= COLUMNS:
            raise RecipeError(
                f"{row.place} has the columns {', '.join(map(repr, row.fields)) or 'none'}; "
                "preference data needs 'chosen' and 'rejected', and may have 'prompt'. "
                "Rename the columns, or give another dataset."
            )
