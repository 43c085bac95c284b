"""The formats of preference data, recognized by their columns, and what a row of each one holds.

How texts and messages become a pair is in `preferences.turns`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.refusals import (
    STANDARD,
    no_format,
    other_columns,
    unmapped_prompt,
    would_be_lost,
)
from rlhf_recipes.preferences.shapes import UnusableRow
from rlhf_recipes.preferences.turns import Values

OURS = ("prompt", "system", "input", "chosen", "rejected")
"""What the key `columns` can map a column to."""

SYSTEM = ("system", "system_prompt", "system_message")
CHANGES_MEANING = {
    *("tools", "functions", "images", "image", "videos", "video", "audios", "audio"),
    *("context", "contexts", "documents", "document", "passage", "history", *SYSTEM),
}
"""Columns without whose values an answer means something else."""

NO_PROMPT = set(
    "id source dataset origin split category type language lang label model subset domain tags "
    "metadata license difficulty turns".split()
)
"""Columns of text that are known to be no prompt; so is one that ends in `_id` or `_model`."""


class Preference(NamedTuple):
    """How a row says which of its two answers is better."""

    columns: tuple[str, ...]
    better: Callable[..., float]  # above 0: the second; below 0: the first; 0: neither


@dataclass(frozen=True)
class Format:
    """One layout of preference data.

    `columns` names its column, or the path in one, for each of `prompt`, `chosen` and `rejected`;
    with a `preference`, chosen and rejected are the first and the second answer as they stand.
    `messages` holds a whole conversation whose last turn is the chosen answer. `instruction` says
    that texts are turns of a conversation; in TRL's formats they are plain text.
    """

    name: str
    columns: Mapping[str, str]
    preference: Preference | None = None
    instruction: bool = True
    optional: tuple[str, ...] = field(default=("input", "history"))

    def required(self) -> set[str]:
        """The columns by which the format is recognized."""
        paths = [*self.columns.values(), *(self.preference.columns if self.preference else ())]
        return {path.partition(".")[0] for path in paths}


def _number(value: object) -> float:
    return float(str(value))


def _numbered(first: float) -> Callable[[object], float]:
    """A choice by number: `first` or one more; what lies between leans to the nearer one."""
    return lambda value: _number(value) - first - 0.5


def _by_score(first: object, second: object) -> float:
    return _number(second) - _number(first)


def _winner(value: object) -> float:
    return {"model_a": -1.0, "model_b": 1.0, "a": -1.0, "b": 1.0}.get(str(value).lower(), 0.0)


def _pair(prompt: str, chosen: str = "chosen", rejected: str = "rejected") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


FORMATS = (
    Format(
        "ms-swift: messages, rejected_response",
        {"messages": "messages", "rejected": "rejected_response"},
    ),
    Format(
        "ms-swift: messages, rejected_messages",
        {"messages": "messages", "rejected": "rejected_messages"},
    ),
    Format(
        "OpenAI: input, preferred_output, non_preferred_output",
        _pair("input.messages", "preferred_output", "non_preferred_output"),
        optional=(),
    ),
    Format(STANDARD, _pair("prompt"), instruction=False),
    Format("Orca, SPIN: question", _pair("question")),
    Format("LLaMA-Factory, Alpaca: instruction, input", _pair("instruction")),
    Format("LLaMA-Factory, ShareGPT: conversations", _pair("conversations")),
    Format("messages beside two answers", _pair("messages")),
    Format("distilabel: input", _pair("input"), optional=("history",)),
    Format("query beside two answers", _pair("query")),
    Format(
        "Argilla: instruction, chosen_response, rejected_response",
        _pair("instruction", "chosen_response", "rejected_response"),
    ),
    Format(
        "Argilla: prompt, chosen_response, rejected_response",
        _pair("prompt", "chosen_response", "rejected_response"),
    ),
    Format(
        "PKU-SafeRLHF: response_0, response_1, better_response_id",
        _pair("prompt", "response_0", "response_1"),
        Preference(("better_response_id",), _numbered(0)),
    ),
    Format(
        "PKU-SafeRLHF by safety: response_0, response_1, safer_response_id",
        _pair("prompt", "response_0", "response_1"),
        Preference(("safer_response_id",), _numbered(0)),
    ),
    Format(
        "SHP: history, human_ref_A, human_ref_B, labels",
        _pair("history", "human_ref_A", "human_ref_B"),
        Preference(("labels",), lambda value: 0.5 - _number(value)),
        optional=("input",),
    ),
    Format(
        "HelpSteer2 preference: response_1, response_2, preference_strength",
        _pair("prompt", "response_1", "response_2"),
        Preference(("preference_strength",), _number),
    ),
    Format(
        "HelpSteer3 preference: context, response1, response2, overall_preference",
        _pair("context", "response1", "response2"),
        Preference(("overall_preference",), _number),
    ),
    Format(
        "summarize_from_feedback: info, summaries, choice",
        _pair("info", "summaries.0.text", "summaries.1.text"),
        Preference(("choice",), _numbered(0)),
        instruction=False,
    ),
    Format(
        "AlpacaEval: output_1, output_2, preference",
        _pair("instruction", "output_1", "output_2"),
        Preference(("preference",), _numbered(1)),
    ),
    Format(
        "Chatbot Arena: conversation_a, conversation_b, winner",
        {"chosen": "conversation_a", "rejected": "conversation_b"},
        Preference(("winner",), _winner),
    ),
    Format(
        "WebGPT comparisons: question, answer_0, answer_1, score_0, score_1",
        _pair("question.full_text", "answer_0", "answer_1"),
        Preference(("score_0", "score_1"), _by_score),
    ),
    Format(
        "TRL or HH-RLHF, prompt inside both answers",
        {"chosen": "chosen", "rejected": "rejected"},
        instruction=False,
    ),
)


class _Layout(NamedTuple):
    """A format as it was met in rows with certain columns: theirs by ours, and the rest."""

    format: Format
    columns: Mapping[str, str]
    preference: tuple[str, ...]
    system: str | None
    instruction: bool
    changing: tuple[str, ...]  # would be lost if they had a value
    candidates: tuple[str, ...]  # could hold the prompt where the format has none


class Reader:
    """Reads rows of any format in the table, and of any other whose columns are mapped.

    Args:
        mapping: Columns of the data by name or path, each with one of OURS, or None for a column
            that is left out on purpose.
    """

    def __init__(self, mapping: Mapping[str, str | None] | None = None) -> None:
        self.ignored: set[str] = set()
        self.formats: dict[str, int] = {}
        self.prompts = False  # whether any row had a column for its prompt
        self._mapping = mapping or {}
        self._used: set[str] = set()
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def __call__(self, fields: Mapping[str, object], place: str) -> Values:
        """What the row holds, or UnusableRow; RecipeError if no format has such columns."""
        if self._mapping:
            fields = self._mapped(fields)
        names = tuple(fields)
        layout = self._layouts.get(names)
        if layout is None:
            layout = self._layouts[names] = self._layout(fields, place)
        self.formats[layout.format.name] = self.formats.get(layout.format.name, 0) + 1
        for name in layout.changing:
            if _has_value(fields[name]):
                raise RecipeError(would_be_lost(place, name))
        values = _values(fields, layout)
        if not values.prompt and isinstance(values.chosen, str):
            for name in layout.candidates:
                if values.implicit and _could_be_prompt(fields[name]):
                    raise RecipeError(unmapped_prompt(place, name, list(fields)))
        return values

    def check_mapping(self) -> None:
        """Raise RecipeError if a column of the mapping was in no row."""
        missing = sorted(set(self._mapping) - self._used)
        if missing and self._layouts:
            seen = sorted({name for names in self._layouts for name in names})
            raise RecipeError(
                f"`columns` maps {', '.join(map(repr, missing))}, which no row has. After "
                f"renaming, the rows have: {', '.join(map(repr, seen))}. Check the spelling."
            )

    def _mapped(self, fields: Mapping[str, object]) -> dict[str, object]:
        renamed = dict(fields)
        for theirs, ours in self._mapping.items():
            head, _, rest = theirs.partition(".")
            if theirs not in fields and not (rest and head in fields):
                continue
            self._used.add(theirs)
            value = fields[theirs] if theirs in fields else _at(fields[head], rest)
            renamed.pop(theirs if theirs in fields else head, None)
            if ours is not None:
                renamed[ours] = value
        return renamed

    def _layout(self, fields: Mapping[str, object], place: str) -> _Layout:
        lower = {name.strip().lower(): name for name in fields}
        found = next(
            (f for f in FORMATS if {n.lower() for n in f.required()} <= lower.keys()), None
        )
        if found is None and self._layouts:
            raise RecipeError(other_columns(place, list(fields), next(iter(self._layouts))))
        if found is None:
            raise RecipeError(no_format(place, list(fields), FORMATS))
        optional = {name: name for name in found.optional}
        columns = {
            ours: _actual(theirs, lower)
            for ours, theirs in {**optional, **found.columns}.items()
            if theirs.partition(".")[0].lower() in lower
        }
        preference = (
            tuple(lower[n.lower()] for n in found.preference.columns) if found.preference else ()
        )
        system = next((lower[name] for name in SYSTEM if name in lower), None)
        used = {path.partition("\0")[0] for path in columns.values()} | {*preference, system}
        rest = [name for name in fields if name not in used]
        self.ignored |= set(rest)
        self.prompts |= "prompt" in columns or "messages" in columns
        mapped = "prompt" in self._mapping.values()
        return _Layout(
            found,
            columns,
            preference,
            system,
            found.instruction
            or mapped
            or bool(columns.keys() & {"input", "history"})
            or system is not None,
            tuple(name for name in rest if name.lower() in CHANGES_MEANING),
            tuple(name for name in rest if not _is_no_prompt(name.lower())),
        )


def _values(fields: Mapping[str, object], layout: _Layout) -> Values:
    at = {ours: _lookup(fields, path) for ours, path in layout.columns.items()}
    chosen, rejected, prompt = at.get("chosen"), at.get("rejected"), at.get("prompt")
    if layout.format.preference:
        try:
            better = layout.format.preference.better(*(fields[n] for n in layout.preference))
        except ValueError:
            better = 0.0  # no answer was preferred in words that are known
        if better != better or better == 0:
            raise UnusableRow("no_preference")
        chosen, rejected = (rejected, chosen) if better > 0 else (chosen, rejected)
    if "messages" in at:
        prompt, chosen, rejected = _continued(at["messages"], rejected)
    if isinstance(prompt, Mapping) and layout.columns["prompt"].lower() == "info":
        prompt = _post(prompt)
    if _has_value(at.get("input")):
        prompt = _joined(prompt, at["input"])
    if _has_value(at.get("history")):
        prompt = _after_history(at["history"], prompt)
    system = fields[layout.system] if layout.system else None
    return Values(
        prompt,
        chosen,
        rejected,
        _system_text(system),
        layout.instruction,
        "prompt" not in layout.columns and "messages" not in layout.columns,
    )


def _joined(instruction: object, material: object) -> object:
    """An instruction with the material it is about, each on its own if the other is missing."""
    if not _has_value(instruction):
        return material
    if not (isinstance(instruction, str) and isinstance(material, str)):
        raise UnusableRow("not_text")
    return f"{instruction}\n{material}"


def _system_text(system: object) -> str:
    """The system column's text; UnusableRow where it holds something else."""
    if not _has_value(system):
        return ""
    if not isinstance(system, str):
        raise UnusableRow("not_text")
    return system


def _continued(messages: object, rejected: object) -> tuple[object, object, object]:
    """Prompt and answers of a conversation that ends with the chosen one."""
    if not isinstance(messages, list) or not messages:
        raise UnusableRow("empty")
    if isinstance(rejected, list) and len(rejected) > 1:
        return None, messages, rejected
    return messages[:-1], messages[-1:], rejected


def _post(info: Mapping[str, object]) -> str:
    """The prompt that summaries of a post or an article were written for, as OpenAI gives it."""
    parts = [
        f"{label}: {mark}{info[name]}"
        for label, mark, name in (
            ("SUBREDDIT", "r/", "subreddit"),
            ("TITLE", "", "title"),
            ("POST", "", "post"),
            ("ARTICLE", "", "article"),
        )
        if _has_value(info.get(name))
    ]
    return "\n\n".join([*parts, "TL;DR:"]) if parts else ""


def _after_history(history: object, prompt: object) -> list[object]:
    """LLaMA-Factory's earlier turns, [user, assistant] each, before the prompt."""
    turns: list[object] = []
    for exchange in history if isinstance(history, list) else [history]:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise UnusableRow("broken_roles")
        for role, content in zip(("user", "assistant"), exchange, strict=True):
            turns.append({"role": role, "content": content})
    return [*turns, {"role": "user", "content": prompt}]


def _actual(path: str, lower: Mapping[str, str]) -> str:
    """The path with its column as the rows spell it; a NUL stands after the column's name."""
    head, dot, rest = path.partition(".")
    return lower[head.lower()] + (f"\0{rest}" if dot else "")


def _lookup(fields: Mapping[str, object], path: str) -> object:
    head, nul, rest = path.partition("\0")
    return _at(fields[head], rest) if nul else fields[head]


def _at(value: object, path: str) -> object:
    """What stands at a dotted path in nested mappings and lists; None if nothing does."""
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
