"""Messages for columns that cannot be read: what was found, the nearest format, what to do."""

import difflib
from collections.abc import Mapping, Sequence

from rlhf_recipes.preferences.formats import FORMATS, STANDARD

_GUESSES = {
    "chosen": ("chosen", "preferred", "accepted", "better", "winner", "win", "good", "positive"),
    "rejected": ("rejected", "worse", "loser", "lose", "bad", "negative", "dispreferred"),
    "prompt": ("prompt", "question", "instruction", "query", "input", "context", "user", "post"),
}
_NOT_PAIRS = (
    (
        {"completion", "label"},
        "one completion per row with a label, the format of KTO, and not pairs. The nearest format "
        "is TRL's with an explicit prompt: write a row with `prompt`, `chosen` and `rejected` "
        "for a good and a bad completion of one prompt.",
    ),
    *(
        (
            {"prompt", column},
            f"a list of completions in {column!r}, and not pairs. The nearest format is TRL's with "
            "an explicit prompt: write a row with `prompt`, `chosen` and `rejected` for every two "
            "completions of which one is better.",
        )
        for column in ("responses", "completions", "answers", "candidates", "generations")
    ),
    *(
        (
            columns,
            "one completion per prompt, the format of supervised fine-tuning, and not pairs. The "
            "nearest format is TRL's with an explicit prompt: add a second, worse completion for "
            "each prompt, in rows with `prompt`, `chosen` and `rejected`.",
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


def no_format(location: str, columns: Sequence[str]) -> str:
    """Return the message for columns in no format, with a mapping or the nearest format."""
    opening = f"{location} has the columns {_listed(columns)}"
    lower = {name.lower() for name in columns}
    mapping = _guessed_mapping(columns)
    if len(mapping) == 3:
        return (
            f"{opening}, which match no known format. If they are its prompt and completions, set "
            f"`columns: {_as_yaml(mapping)}`."
        )
    for required, description in _NOT_PAIRS:
        if required <= lower:
            return f"{opening}: {description}"
    nearest = max(FORMATS, key=lambda f: (_similarity(f.required(), lower), f.name == STANDARD))
    return (
        f"{opening}, which match no known format. Preference data needs 'chosen' and "
        f"'rejected', and may have 'prompt'. The nearest format is \"{nearest.name}\", with the "
        f"columns {_listed(sorted(nearest.required()))}. Rename the columns, map them with "
        "`columns: {YOURS: prompt, YOURS: chosen, YOURS: rejected}`, or give another dataset."
    )


def would_be_lost(location: str, column: str) -> str:
    """Return the message for a value that the completions depend on and the model would not see."""
    return (
        f"{location} has a value in {column!r}, which the completions may depend on and the model "
        "would not see. Remove such rows from the data, or set `columns: "
        f"{_as_yaml({column: None})}` to train without it."
    )


def unmapped_prompt(location: str, column: str, columns: Sequence[str]) -> str:
    """Return the message for plain text without a prompt where another column could be it."""
    prompt, none = _as_yaml({column: "prompt"}), _as_yaml({column: None})
    return (
        f"{location} has the columns {_listed(columns)}: its completions are plain text without a "
        f"'prompt' column, and {column!r} could hold the prompt. Set `columns: {prompt}` if it "
        f"does, or `columns: {none}` if the prompt is what both completions begin with."
    )


def other_columns(location: str, columns: Sequence[str], before: Sequence[str]) -> str:
    """Return the message for a row in no format after rows that had one."""
    return (
        f"{location} has the columns {_listed(columns)}, which match no known format; the rows "
        f"before it have {_listed(before)}. Complete or remove such rows, or give only the files "
        "that hold pairs."
    )


def _guessed_mapping(columns: Sequence[str]) -> dict[str, str]:
    """Map the columns whose names tell that they are prompt, chosen or rejected."""
    mapping: dict[str, str] = {}
    for target in ("rejected", "chosen", "prompt"):
        unmapped = [name for name in columns if name not in mapping]
        for word in _GUESSES[target]:
            matches = [
                name for name in unmapped if word in name.lower().replace("non_preferred", "worse")
            ]
            if matches:
                mapping[matches[0]] = target
                break
    return mapping


def _similarity(required: set[str], columns: set[str]) -> float:
    """Return the fraction of the required columns that have a similar name among the columns."""
    near = [difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.8) for name in required]
    return sum(map(bool, near)) / len(required)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _as_yaml(mapping: Mapping[str, str | None]) -> str:
    return "{" + ", ".join(f"{a}: {'null' if b is None else b}" for a, b in mapping.items()) + "}"
