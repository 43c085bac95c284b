"""Read the values of a row: recognize its format, apply the mapping `columns`, find a preference.

`turns` makes a pair of the values.
"""

from collections.abc import Mapping
from typing import NamedTuple

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.formats import FORMATS, Format
from rlhf_recipes.preferences.refusals import (
    no_format,
    other_columns,
    unmapped_prompt,
    would_be_lost,
)
from rlhf_recipes.preferences.shapes import UnusableRow
from rlhf_recipes.preferences.turns import RowValues

SYSTEM = ("system", "system_prompt", "system_message")
CHANGES_MEANING = {
    *("tools", "functions", "images", "image", "videos", "video", "audios", "audio"),
    *("context", "contexts", "documents", "document", "passage", "history", *SYSTEM),
}
"""Columns whose values the completions depend on."""

NO_PROMPT = set(
    "id source dataset origin split category type language lang label model subset domain tags "
    "metadata license difficulty turns".split()
)
"""Columns of text that are not a prompt; neither is one that ends in `_id` or `_model`."""


class _Layout(NamedTuple):
    """A format together with the actual column names of rows that have it."""

    format: Format
    columns: Mapping[str, str]  # path in the row of each field
    preference: tuple[str, ...]
    system: str | None
    instruction: bool
    changing: tuple[str, ...]  # unused columns that the completions depend on
    candidates: tuple[str, ...]  # unused columns that could be the prompt


class Reader:
    """Reads rows of any format in `FORMATS`, and of any other layout whose columns are mapped.

    Args:
        mapping: From columns or dotted paths of the dataset to one of OURS, or to None for a column
            to drop.

    Attributes:
        ignored: Columns, and fields of messages, that no pair uses.
        formats: Number of rows by format.
        has_prompt_column: Whether any row had a column for its prompt.
    """

    def __init__(self, mapping: Mapping[str, str | None] | None = None) -> None:
        self.ignored: set[str] = set()
        self.formats: dict[str, int] = {}
        self.has_prompt_column = False
        self._mapping = mapping or {}
        self._used: set[str] = set()
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def __call__(self, fields: Mapping[str, object], location: str) -> RowValues:
        """Return the values of a row.

        Raises UnusableRow for a row to drop, and RecipeError if its columns are in no format or
        could be misread.
        """
        if self._mapping:
            fields = self._mapped(fields)
        names = tuple(fields)
        layout = self._layouts.get(names)
        if layout is None:
            layout = self._layouts[names] = self._layout(fields, location)
        self.formats[layout.format.name] = self.formats.get(layout.format.name, 0) + 1
        for name in layout.changing:
            if _has_value(fields[name]):
                raise RecipeError(would_be_lost(location, name))
        values = _values(fields, layout)
        if not values.prompt and isinstance(values.chosen, str):
            for name in layout.candidates:
                if values.implicit and _could_be_prompt(fields[name]):
                    raise RecipeError(unmapped_prompt(location, name, list(fields)))
        return values

    def check_mapping(self) -> None:
        """Raise RecipeError if no row had a column of the mapping."""
        missing = sorted(set(self._mapping) - self._used)
        if missing and self._layouts:
            names = sorted({name for names in self._layouts for name in names})
            raise RecipeError(
                f"`columns` maps {', '.join(map(repr, missing))}, which no row has. After the "
                f"mapping, the rows have: {', '.join(map(repr, names))}. Check the spelling."
            )

    def _mapped(self, fields: Mapping[str, object]) -> dict[str, object]:
        renamed = dict(fields)
        for path, target in self._mapping.items():
            column, _, rest = path.partition(".")
            if path not in fields and not (rest and column in fields):
                continue
            self._used.add(path)
            value = fields[path] if path in fields else _at(fields[column], rest)
            renamed.pop(path if path in fields else column, None)
            if target is not None:
                renamed[target] = value
        return renamed

    def _layout(self, fields: Mapping[str, object], location: str) -> _Layout:
        lower = {name.strip().lower(): name for name in fields}
        row_format = next(
            (f for f in FORMATS if {n.lower() for n in f.required()} <= lower.keys()), None
        )
        if row_format is None and self._layouts:
            raise RecipeError(other_columns(location, list(fields), next(iter(self._layouts))))
        if row_format is None:
            raise RecipeError(no_format(location, list(fields)))
        optional = {name: name for name in row_format.optional}
        columns = {
            target: _actual(path, lower)
            for target, path in {**optional, **row_format.columns}.items()
            if path.partition(".")[0].lower() in lower
        }
        preference = (
            tuple(lower[n.lower()] for n in row_format.preference.columns)
            if row_format.preference
            else ()
        )
        system = next((lower[name] for name in SYSTEM if name in lower), None)
        used = {path.partition("\0")[0] for path in columns.values()} | {*preference, system}
        rest = [name for name in fields if name not in used]
        self.ignored |= set(rest)
        self.has_prompt_column |= "prompt" in columns or "messages" in columns
        mapped = "prompt" in self._mapping.values()
        return _Layout(
            row_format,
            columns,
            preference,
            system,
            row_format.instruction
            or mapped
            or bool(columns.keys() & {"input", "history"})
            or system is not None,
            tuple(name for name in rest if name.lower() in CHANGES_MEANING),
            tuple(name for name in rest if not _is_no_prompt(name.lower())),
        )


def _values(fields: Mapping[str, object], layout: _Layout) -> RowValues:
    values = {target: _lookup(fields, path) for target, path in layout.columns.items()}
    chosen, rejected, prompt = (values.get(name) for name in ("chosen", "rejected", "prompt"))
    if layout.format.preference:
        try:
            comparison = layout.format.preference.compare(*(fields[n] for n in layout.preference))
        except ValueError:
            comparison = 0.0  # a text that is not a number, such as "tie"
        if comparison != comparison or comparison == 0:  # NaN: a missing number
            raise UnusableRow("no_preference")
        chosen, rejected = (rejected, chosen) if comparison > 0 else (chosen, rejected)
    if "messages" in values:
        prompt, chosen, rejected = _continued(values["messages"], rejected)
    if isinstance(prompt, Mapping) and layout.columns["prompt"].lower() == "info":
        prompt = _post(prompt)
    if _has_value(values.get("input")):
        prompt = _with_input(prompt, values["input"])
    if _has_value(values.get("history")):
        prompt = _after_history(values["history"], prompt)
    system = fields[layout.system] if layout.system else None
    return RowValues(
        prompt,
        chosen,
        rejected,
        _system_text(system),
        layout.instruction,
        "prompt" not in layout.columns and "messages" not in layout.columns,
    )


def _with_input(instruction: object, input_text: object) -> object:
    """Join an instruction and its input; if there is no instruction, return the input."""
    if not _has_value(instruction):
        return input_text
    if not (isinstance(instruction, str) and isinstance(input_text, str)):
        raise UnusableRow("not_text")
    return f"{instruction}\n{input_text}"


def _system_text(system: object) -> str:
    """Return the text of the system column; UnusableRow if it is not text."""
    if not _has_value(system):
        return ""
    if not isinstance(system, str):
        raise UnusableRow("not_text")
    return system


def _continued(messages: object, rejected: object) -> tuple[object, object, object]:
    """Return prompt, chosen and rejected of a conversation that ends with the chosen completion."""
    if not isinstance(messages, list) or not messages:
        raise UnusableRow("empty")
    if isinstance(rejected, list) and len(rejected) > 1:
        return None, messages, rejected
    return messages[:-1], messages[-1:], rejected


def _post(info: Mapping[str, object]) -> str:
    """Return the prompt of a summary in OpenAI's format, from a post or an article."""
    sections = [
        f"{label}: {mark}{info[name]}"
        for label, mark, name in (
            ("SUBREDDIT", "r/", "subreddit"),
            ("TITLE", "", "title"),
            ("POST", "", "post"),
            ("ARTICLE", "", "article"),
        )
        if _has_value(info.get(name))
    ]
    return "\n\n".join([*sections, "TL;DR:"]) if sections else ""


def _after_history(history: object, prompt: object) -> list[object]:
    """Put LLaMA-Factory's history, a list of [user, assistant], before the prompt."""
    turns: list[object] = []
    for exchange in history if isinstance(history, list) else [history]:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise UnusableRow("broken_roles")
        for role, content in zip(("user", "assistant"), exchange, strict=True):
            turns.append({"role": role, "content": content})
    return [*turns, {"role": "user", "content": prompt}]


def _actual(path: str, lower: Mapping[str, str]) -> str:
    """Return a path with the column as the rows spell it.

    A NUL instead of a dot ends the name of the column, which may contain dots.
    """
    column, dot, rest = path.partition(".")
    return lower[column.lower()] + (f"\0{rest}" if dot else "")


def _lookup(fields: Mapping[str, object], path: str) -> object:
    column, nul, rest = path.partition("\0")
    return _at(fields[column], rest) if nul else fields[column]


def _at(value: object, path: str) -> object:
    """Return the value at a dotted path in nested mappings and lists, or None."""
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _has_value(value: object) -> bool:
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null", "None", "nan")
    return value is not None and value == value and value not in ([], {}, False)


def _is_no_prompt(name: str) -> bool:
    return name in NO_PROMPT or name.endswith(("_id", "_model", "-model"))


def _could_be_prompt(value: object) -> bool:
    return isinstance(value, str | list | Mapping) and _has_value(value)
