"""What a report is made of. Each block is rendered to Markdown and to HTML by its kind."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """Sentences, each a paragraph or a bullet. Marks: `code` and **bold**."""

    lines: list[str]
    bullets: bool = True
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Columns and rows of text, with a note that defines what they say."""

    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    """One of the figures beside the report."""

    file: str
    alt: str
    kind: str = "picture"


@dataclass(frozen=True)
class Code:
    """A command to type."""

    text: str
    kind: str = "code"


@dataclass(frozen=True)
class Excerpt:
    """One text under a heading with its facts: a model's response, or a side of a pair."""

    name: str
    facts: list[str]
    text: str


@dataclass(frozen=True)
class Excerpts:
    """A prompt and texts to read side by side; folded where there are many."""

    title: str
    prompt: str
    texts: list[Excerpt]
    folded: bool = False
    kind: str = "excerpts"


@dataclass(frozen=True)
class Samples:
    """All answers to browse where a script may run, and the prompts to read where none does."""

    rule: str
    shown: list[Excerpts]
    data: dict[str, Any]
    kind: str = "samples"


Block = Text | Table | Picture | Code | Excerpts | Samples


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; without blocks it is left out."""

    title: str
    blocks: list[Block] = field(default_factory=list)
