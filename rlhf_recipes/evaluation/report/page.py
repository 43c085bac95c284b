"""The sections of report.html from the Markdown of ANALYSIS.md, with raw HTML off."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

LONG_CELL = 34
OPEN = ("One prompt", "Samples")


@dataclass(frozen=True)
class Section:
    """The HTML under one heading of level two."""

    title: str
    html: Markup


def anchor(title: str) -> str:
    """Return the id of a heading: `win-rates` for `Win rates`, as GitHub makes them."""
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))


def sections(
    markdown: str, figures: Path, colors: Mapping[str, str], samples: Mapping[str, object]
) -> list[Section]:
    """Return what stands before the first heading of level two, then each such section.

    Args:
        figures: Folder of the figures, which become part of the page.
        colors: Color of each model, shown beside its name in tables and headings.
        samples: The ids of samples; one in a code span leads to it in the sample browser.
    """
    reader = _reader(figures, samples)
    tokens = reader.parse(markdown)
    _describe_tables(tokens, colors)
    _describe_blocks(tokens, colors)
    starts = [i for i, t in enumerate(tokens) if t.type == "heading_open" and t.tag == "h2"]
    first = next(i for i, t in enumerate(tokens) if t.type == "heading_close") + 1
    parts = [("Verdict", tokens[first : starts[0]])]
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        parts.append((tokens[start + 1].content, tokens[start:end]))
    pages = []
    for title, part in parts:
        html = reader.renderer.render(_folded(part), reader.options, {"section": title})
        opened = html.replace("<details>", "<details open>", 1) if title in OPEN else html
        pages.append(Section(title, Markup(opened)))
    return pages


def _reader(figures: Path, samples: Mapping[str, object]) -> MarkdownIt:
    """Return a reader of Markdown that writes HTML our way."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
        content = (figures / Path(str(tokens[index].attrs["src"])).name).read_bytes()
        source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
        alt = escape(tokens[index].content)
        return f'<figure tabindex="0"><img src="{source}" alt="{alt}"></figure>'

    def code(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
        text = tokens[index].content
        place = re.search(r"-(\d+)-(\d+)$", text) if text in samples else None
        html = f"<code>{escape(text)}</code>"
        if place is None:
            return html
        target = f"#prompt={int(place[1])}&amp;sample={int(place[2]) + 1}"
        return f'<a href="{target}">{html}</a>'

    def fence(self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
        text = escape(tokens[index].content.removesuffix("\n"))
        is_text = tokens[index].info == "text"
        return f'<div class="text">{text}</div>\n' if is_text else f"<pre>{text}</pre>\n"

    def table(self: RendererHTML, tokens: Sequence[Token], index: int, *rest: Any) -> str:
        label = escape(rest[-1]["section"])
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {label}"><table>'

    def table_end(*_: Any) -> str:
        return "</table></div>"

    rules = {"image": image, "code_inline": code, "fence": fence}
    for name, rule in (rules | {"table_open": table, "table_close": table_end}).items():
        reader.add_render_rule(name, rule)
    return reader


def _describe_tables(tokens: list[Token], colors: Mapping[str, str]) -> None:
    """Give cells their column's name, rows a heading, and models their color."""
    columns: list[str] = []
    for i, token in enumerate(tokens):
        if token.type == "thead_open":
            columns = []
        elif token.type == "th_open":
            columns.append(re.sub(r"\[(.*?)\]\(.*?\)", r"\1", tokens[i + 1].content))
            token.attrSet("scope", "col")
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            text = tokens[i + 1].content
            token.attrSet("data-column", columns[column])
            if column == 0:
                token.tag = tokens[i + 2].tag = "th"
                token.attrSet("scope", "row")
                _set_color(token, text, colors)
            elif len(text) > LONG_CELL:
                token.attrSet("class", "long")
            column += 1


def _describe_blocks(tokens: list[Token], colors: Mapping[str, str]) -> None:
    """Give headings an id, models their color, and take the paragraph around a figure away."""
    for token, content, end in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.type == "heading_open":
            _set_color(token, content.content, colors)
            if token.tag == "h3":
                token.attrSet("id", anchor(content.content))
        if token.type == "paragraph_open" and [c.type for c in content.children or []] == ["image"]:
            token.hidden = end.hidden = True


def _set_color(token: Token, name: str, colors: Mapping[str, str]) -> None:
    if name in colors:
        token.attrSet("class", "dot")
        token.attrSet("style", f"--dot: {colors[name]}")


def _folded(tokens: Sequence[Token]) -> list[Token]:
    """Make each prompt a fold that shows the completions below it in columns.

    A prompt is a heading of level three, a completion one of level four.
    """
    headings = [t.tag if t.type == "heading_open" else "" for t in tokens]
    folded: list[Token] = []
    ends: list[tuple[str, str]] = []
    for i, token in enumerate(tokens):
        if headings[i]:
            while ends and ends[-1][0] >= token.tag:
                folded.append(_html(ends.pop()[1]))
            following = next(filter(None, headings[i + 1 :]), "")
            if token.tag == "h3" and following == "h4":
                folded.append(_html("<details><summary>"))
                ends.append(("h3", "</div></details>"))
            elif token.tag == "h4":
                folded.append(_html("<article>"))
                ends.append(("h4", "</article>"))
        folded.append(token)
        if token.type == "heading_close" and token.tag == "h3" and ends:
            folded.append(_html('</summary><div class="side">'))
    return [*folded, *(_html(end) for _, end in reversed(ends))]


def _html(text: str) -> Token:
    return Token("html_block", "", 0, content=text)
