"""What is said of rows whose columns are in no format: what was seen, what is near, what to do."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

STANDARD = "TRL, explicit prompt"

_GUESSES = {
    "chosen": ("chosen", "preferred", "accepted", "better", "winner", "win", "good", "positive"),
    "rejected": ("rejected", "worse", "loser", "lose", "bad", "negative", "dispreferred"),
    "prompt": ("prompt", "question", "instruction", "query", "input", "context", "user", "post"),
}
_NOT_PAIRS = (
    (
        {"completion", "label"},
        "one answer per row with a verdict, as KTO takes them, and not pairs. The nearest format "
        "is TRL's with an explicit prompt: write a row with `prompt`, `chosen` and `rejected` "
        "for each good and bad answer to one prompt.",
    ),
    *(
        (
            {"prompt", answers},
            f"a list of answers in {answers!r}, and not pairs. The nearest format is TRL's with an "
            "explicit prompt: write a row with `prompt`, `chosen` and `rejected` for each two "
            "answers of which one is better.",
        )
        for answers in ("responses", "completions", "answers", "candidates", "generations")
    ),
    *(
        (
            columns,
            "one answer per prompt, as supervised fine-tuning takes them. The nearest format is "
            "TRL's with an explicit prompt: a second, worse answer is needed for each prompt, in "
            "rows with `prompt`, `chosen` and `rejected`.",
        )
        for columns in (
            {"prompt", "completion"},
            {"prompt", "response"},
            {"instruction", "output"},
            {"messages"},
            {"conversations"},
            {"text"},
        )
    ),
)


class _Known(Protocol):
    """A format as a refusal names it."""

    @property
    def name(self) -> str: ...
    def required(self) -> set[str]: ...


def no_format(place: str, columns: Sequence[str], formats: Iterable[_Known]) -> str:
    """Say that a row's columns are in no format."""
    seen = f"{place} has the columns {_listed(columns)}"
    lower = {name.lower() for name in columns}
    guess = _guess(columns)
    if len(guess) == 3:
        return (
            f"{seen}, which are in no format that is known. If these are its prompt and answers, "
            f"set `columns: {_as_yaml(guess)}`."
        )
    for needed, what in _NOT_PAIRS:
        if needed <= lower:
            return f"{seen}: {what}"
    nearest = max(formats, key=lambda f: (_likeness(f.required(), lower), f.name == STANDARD))
    return (
        f"{seen}, which are in no format that is known. Preference data needs 'chosen' and "
        f"'rejected', and may have 'prompt'. The nearest format is \"{nearest.name}\", with the "
        f"columns {_listed(sorted(nearest.required()))}. Rename the columns, say which is which "
        "with `columns: {THEIRS: prompt, THEIRS: chosen, THEIRS: rejected}`, or give another "
        "dataset."
    )


def would_be_lost(place: str, column: str) -> str:
    """Say that a row has a value that the model would not see."""
    return (
        f"{place} has a value in {column!r}, which the model would not see, and without it the "
        f"answers mean something else. Leave such rows out of the data, or set `columns: "
        f"{_as_yaml({column: None})}` to train without it."
    )


def unmapped_prompt(place: str, column: str, columns: Sequence[str]) -> str:
    """Say that plain answers have no prompt, and that another column could be it."""
    prompt, none = _as_yaml({column: "prompt"}), _as_yaml({column: None})
    return (
        f"{place} has the columns {_listed(columns)}: its answers are plain text without a "
        f"'prompt' column, and {column!r} could hold the prompt. Set `columns: {prompt}` if it "
        f"does, or `columns: {none}` if the prompt is what both answers begin with."
    )


def other_columns(place: str, columns: Sequence[str], before: Sequence[str]) -> str:
    """Say that a row is in no format, unlike the rows before it."""
    return (
        f"{place} has the columns {_listed(columns)}, which are in no format that is known; the "
        f"rows before it have {_listed(before)}. Complete or remove such rows, or give the files "
        "that hold the pairs."
    )


def _guess(columns: Sequence[str]) -> dict[str, str]:
    """Theirs by ours, for columns whose names say what they are."""
    guess: dict[str, str] = {}
    for ours in ("rejected", "chosen", "prompt"):
        free = [name for name in columns if name not in guess]
        for word in _GUESSES[ours]:
            near = [name for name in free if word in name.lower().replace("non_preferred", "worse")]
            if near:
                guess[near[0]] = ours
                break
    return guess


def _likeness(needed: set[str], columns: set[str]) -> float:
    near = [difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.8) for name in needed]
    return sum(map(bool, near)) / len(needed)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _as_yaml(mapping: Mapping[str, str | None]) -> str:
    return "{" + ", ".join(f"{a}: {'null' if b is None else b}" for a, b in mapping.items()) + "}"
