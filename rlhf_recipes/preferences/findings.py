"""What a run of prepare_data found out about a dataset, beside its pairs."""

from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_recipes.preferences.shapes import Pair, prompt_key
from rlhf_recipes.prompts import completion_text


@dataclass(frozen=True)
class Findings:
    """How the data were read, what was left unread, and which pairs say a thing twice or both ways.

    `duplicates` counts the pairs that repeat an earlier one. `contradictions` counts the pairs of
    answers to one prompt that stand in both orders. `cut` says that prompts are what plain answers
    have in common.
    """

    formats: dict[str, int]
    ignored_columns: list[str]
    unread_files: list[str]
    notes: list[str]
    cut: bool
    duplicates: int
    contradictions: int

    def as_dict(self) -> dict[str, Any]:
        """The findings as dataset_stats.json has them."""
        return asdict(self)


def count_repeats(pairs: Iterable[Pair]) -> dict[str, int]:
    """Count duplicate pairs, and pairs of answers of which each is preferred once."""
    total = 0
    distinct: set[tuple[Hashable, str, str]] = set()
    for pair in pairs:
        total += 1
        answers = completion_text(pair.chosen).strip(), completion_text(pair.rejected).strip()
        distinct.add((prompt_key(pair.prompt), *answers))
    both = sum((prompt, rejected, chosen) in distinct for prompt, chosen, rejected in distinct)
    return {"duplicates": total - len(distinct), "contradictions": both // 2}
