"""The formats of preference data, each recognized by its columns.

`reader` reads a row of any of them. To add a format, add an entry to `FORMATS`, a row to
docs/data.md and a case to tests/preferences/test_formats.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

OURS = ("prompt", "system", "input", "chosen", "rejected")
"""Fields that the recipe key `columns` can map a column to."""

STANDARD = "TRL, explicit prompt"


class Preference(NamedTuple):
    """Columns that tell which of a row's two completions is preferred.

    `compare`, called with the values of `columns`, returns a number below 0 for the first
    completion, above 0 for the second, and 0 for neither.
    """

    columns: tuple[str, ...]
    compare: Callable[..., float]


@dataclass(frozen=True)
class Format:
    """One layout of preference data.

    Args:
        columns: The column, or the dotted path in a column, of each of `prompt`, `chosen` and
            `rejected`. With a `preference`, `chosen` is the first completion and `rejected` the
            second, whichever is preferred. `messages` is a whole conversation whose last turn is
            the chosen completion.
        instruction: Whether texts are turns of a conversation. In TRL's formats they are plain
            text.
        optional: Columns that are used if a row has them.
    """

    name: str
    columns: Mapping[str, str]
    preference: Preference | None = None
    instruction: bool = True
    optional: tuple[str, ...] = field(default=("input", "history"))

    def required(self) -> set[str]:
        """Return the columns by which the format is recognized."""
        paths = [*self.columns.values(), *(self.preference.columns if self.preference else ())]
        return {path.partition(".")[0] for path in paths}


def _number(value: object) -> float:
    return float(str(value))


def _numbered(first: float) -> Callable[[object], float]:
    """Compare by number: `first` or `first` + 1; a number between them prefers the nearer one."""
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
    Format("messages, chosen, rejected", _pair("messages")),
    Format("distilabel: input", _pair("input"), optional=("history",)),
    Format("query, chosen, rejected", _pair("query")),
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
