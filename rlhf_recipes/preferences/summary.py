"""The text that prepare_data.py prints: sizes, findings, and one pair as the model will see it."""

from collections.abc import Iterator

from rlhf_recipes.preferences.preparation import SPLITS, Prepared, size_table
from rlhf_recipes.preferences.shapes import REASONS
from rlhf_recipes.terminal import printable

TEXT_CHARACTERS = 600
WARN_ABOVE = 0.5  # fraction of the rows that are dropped for one reason
MAX_LISTED = 8


def summary(prepared: Prepared) -> str:
    """Return the sizes, the findings, warnings, and one prepared pair as printable text."""
    sections = [size_table(prepared), "\n".join(_lines(prepared)), *_warnings(prepared)]
    titles = ("prompt", "chosen", "rejected")
    texts = zip(titles, prepared.example, strict=True)
    example = "\n".join(f"--- {title}\n{_without_middle(text)}" for title, text in texts)
    location = prepared.pairs["train"][0].location
    return printable(
        "\n\n".join([*sections, f"One pair ({location}), as the model will see it:\n{example}"])
    )


def _lines(prepared: Prepared) -> Iterator[str]:
    findings = prepared.findings
    for name, count in findings.formats.items():
        yield f"format: {name} ({count:,} rows)"
    yield f"ignored columns: {_listed(findings.ignored_columns)}"
    if findings.unread_files:
        yield f"not read: {_listed(findings.unread_files)}"
    yield f"duplicate pairs: {findings.duplicates:,}"
    yield f"contradictory pairs: {findings.contradictions:,} (each completion is preferred once)"
    yield from (f"note: {note}" for note in findings.notes)


def _warnings(prepared: Prepared) -> Iterator[str]:
    total = sum(prepared.rows.values())
    for reason, dropped in prepared.dropped.items():
        count = sum(dropped.count[split] for split in SPLITS)
        if count > WARN_ABOVE * total:
            example = dropped.examples[0]
            yield (
                f"Warning: {count:,} of {total:,} rows were dropped for one reason, {reason}: "
                f"{REASONS[reason]}. An example is {example['row']}: chosen ends in "
                f"{example['chosen']!r}, rejected in {example['rejected']!r}."
            )
    if prepared.findings.cut:
        yield (
            "Warning: the data has no prompt, so the words that both completions begin with were "
            "taken as the prompt. If the completions themselves begin alike, the prompt contains "
            "their first words: look at the pair below, and put the prompt in a column named "
            "`prompt`."
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(names[:MAX_LISTED]) + more) or "none"


def _without_middle(text: str) -> str:
    if len(text) <= TEXT_CHARACTERS:
        return text
    half = TEXT_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
