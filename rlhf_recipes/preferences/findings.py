"""Findings of prepare_data.py about a dataset in addition to its pairs and dropped rows."""

from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_recipes.preferences.shapes import Pair
from rlhf_recipes.prompts import completion_text


@dataclass(frozen=True)
class Findings:
    """Formats that were read, columns and files that were ignored, and repeated pairs.

    `formats` counts rows by format. `duplicates` counts the pairs that repeat an earlier one.
    `contradictions` counts the pairs of completions of one prompt of which each is preferred once.
    `cut` tells that some prompts are the common beginning of two plain-text completions.
    """

    formats: dict[str, int]
    ignored_columns: list[str]
    unread_files: list[str]
    notes: list[str]
    cut: bool
    duplicates: int
    contradictions: int

    def as_dict(self) -> dict[str, Any]:
        """Return the findings with the keys of dataset_stats.json."""
        return asdict(self)


def count_repeats(pairs: Iterable[Pair]) -> dict[str, int]:
    """Count duplicate pairs, and pairs of completions of which each is preferred once."""
    total = 0
    distinct: set[tuple[Hashable, str, str]] = set()
    for pair in pairs:
        total += 1
        texts = completion_text(pair.chosen).strip(), completion_text(pair.rejected).strip()
        distinct.add((pair.prompt_key, *texts))
    both = sum((prompt, rejected, chosen) in distinct for prompt, chosen, rejected in distinct)
    return {"duplicates": total - len(distinct), "contradictions": both // 2}
