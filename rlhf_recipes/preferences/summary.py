"""What prepare_data prints: sizes, findings and one pair as the model will see it."""

from collections.abc import Iterator

from rlhf_recipes.preferences.preparation import SPLITS, Prepared, size_table
from rlhf_recipes.preferences.shapes import REASONS
from rlhf_recipes.terminal import printable

TEXT_CHARACTERS = 600
MANY = 0.5  # fraction of the rows left out for one reason, above which something may be wrong
LISTED = 8


def summary(prepared: Prepared) -> str:
    """Sizes, how the rows were read, what deserves a warning, and one prepared pair."""
    parts = [size_table(prepared), "\n".join(_lines(prepared)), *_warnings(prepared)]
    titles = ("prompt", "chosen", "rejected")
    texts = zip(titles, prepared.example, strict=True)
    shown = "\n".join(f"--- {title}\n{_without_middle(text)}" for title, text in texts)
    place = prepared.pairs["train"][0].place
    return printable(
        "\n\n".join([*parts, f"One pair ({place}), as the model will see it:\n{shown}"])
    )


def _lines(prepared: Prepared) -> Iterator[str]:
    found = prepared.findings
    for name, count in found.formats.items():
        yield f"format: {name} ({count:,} rows)"
    yield f"ignored columns: {_listed(found.ignored_columns)}"
    if found.unread_files:
        yield f"not read: {_listed(found.unread_files)}"
    yield f"duplicate pairs: {found.duplicates:,}"
    yield f"contradictory pairs: {found.contradictions:,} (each answer is preferred once)"
    yield from (f"note: {note}" for note in found.notes)


def _warnings(prepared: Prepared) -> Iterator[str]:
    total = sum(prepared.rows.values())
    for reason, dropped in prepared.dropped.items():
        count = sum(dropped.count[split] for split in SPLITS)
        if count > MANY * total:
            example = dropped.examples[0]
            yield (
                f"Warning: {count:,} of {total:,} rows were left out for one reason, {reason}: "
                f"{REASONS[reason]}. Such a row is {example['row']}: chosen ends in "
                f"{example['chosen']!r}, rejected in {example['rejected']!r}."
            )
    if prepared.findings.cut:
        yield (
            "Warning: the data have no prompt, so it is what both answers begin with, up to the "
            "last word that they share. If they begin alike beyond the prompt, it is cut inside "
            "the answers: look at the pair below, and give the prompt a column of its own."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) + more) or "none"


def _without_middle(text: str) -> str:
    if len(text) <= TEXT_CHARACTERS:
        return text
    half = TEXT_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
