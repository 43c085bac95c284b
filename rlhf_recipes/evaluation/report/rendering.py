"""ANALYSIS.md, report.html and the closing table, from the results."""

import base64
import hashlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rlhf_recipes.evaluation.metrics.samples import Results, reward_of
from rlhf_recipes.evaluation.report.blocks import Section, Table
from rlhf_recipes.evaluation.report.figures import colours
from rlhf_recipes.evaluation.report.sentences import number, percent, percent_span
from rlhf_recipes.terminal import UNPRINTABLE, printable

TITLE = "RLHF evaluation"
WIDTH = 100
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    "base-uri 'none'; form-action 'none'"
)
TEMPLATES = Path(__file__).parent / "templates"


def render_markdown(sections: list[Section]) -> str:
    """ANALYSIS.md. Texts of models stand in fences longer than any in them, so they stay inert.

    Control characters are escaped: what shows the file on a terminal obeys none of them.
    """
    environment = _environment(autoescape=False)
    environment.filters |= {"cell": lambda text: text.replace("|", "\\|"), "fenced": _fenced}
    text = environment.get_template("ANALYSIS.md.j2").render(title=TITLE, sections=sections)
    return printable(text)


def render_html(sections: list[Section], results: Results, figures: Path) -> str:
    """report.html: one file with its figures, style and script inside.

    Every text is escaped, the samples for the script are JSON that cannot end their element, and a
    policy lets only this very script run and nothing be loaded.
    """
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = _environment(autoescape=True)
    filters: dict[str, Any] = {
        "inline": lambda text: _inline(text, results["flags"]),
        "anchor": lambda text: text.lower().replace(" ", "-"),
        "inert_json": _inert_json,
        "numeric_columns": _numeric_columns,
    }
    environment.filters |= filters
    text = environment.get_template("report.html.j2").render(
        title=TITLE,
        sections=sections,
        config=results["config"],
        colours=colours(results),
        embed=lambda name: base64.b64encode((figures / name).read_bytes()).decode("ascii"),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=POLICY.format(digest=digest),
    )
    return printable(text)


def closing_table(results: Results) -> str:
    """One row a model for the terminal: rewards, win rates with intervals, KL, length; then where.

    Claims belong to the primary metric; the proxy is what was trained on.
    """
    metrics = list(reversed(results["config"]["metrics"]))
    header = ["method", *(f"{m} reward" for m in metrics), *(f"{m} win rate" for m in metrics)]
    rows = [[*header, "KL", "length"]]
    contestants = results["models"].items()
    for name, model in contestants:
        row = [name, *(number(reward_of(model, m)["mean"]) for m in metrics)]
        for metric in metrics:
            win = model["win_rate"][metric]
            row.append(f"{percent(win['value'])} {percent_span(win['ci'])}" if win else "-")
        rows.append([*row, number(model["kl"]["seq"]), f"{model['length']['mean']:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_padded(row, widths)) for row in rows]
    rule = "-" * len(lines[0])
    config = results["config"]
    notes = (
        f"{config['n_prompts']} prompts; win rate over base with {percent(config['confidence'])} "
        "interval; KL to base in nats per response; length in tokens"
    )
    body = [lines[0], rule, *lines[1:], rule, *textwrap.wrap(notes, len(rule))]
    return "\n".join([*body, *(f"Report: {path}" for path in [results.get("report")] if path)])


def _padded(row: list[str], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0])] + [
        cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
    ]


def _environment(*, autoescape: bool) -> Environment:
    return Environment(
        loader=PackageLoader("rlhf_recipes.evaluation.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _fenced(text: str) -> str:
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    wrapped = "\n".join(
        part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH) or [""]
    )
    return f"{fence}text\n{wrapped}\n{fence}"


def _inline(text: str, samples: Results) -> Markup:
    """Marks as HTML; the id of a sample leads to it in the browser."""
    marked = re.sub(r"`([^`]+)`", lambda code: _code(code[1], samples), str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked))


def _code(text: str, samples: Results) -> str:
    code = f"<code>{text}</code>"
    place = re.search(r"-(\d+)-(\d+)$", text) if text in samples else None
    if place is None:
        return code
    return f'<a href="#prompt={int(place[1])}&amp;sample={int(place[2]) + 1}">{code}</a>'


def _inert_json(data: Results) -> Markup:
    """JSON without a control character, or one that could end or begin an element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    unsafe = rf"[<>&\u2028\u2029]|{UNPRINTABLE.pattern}"
    return Markup(re.sub(unsafe, lambda found: f"\\u{ord(found[0]):04x}", text))


def _numeric_columns(table: Table) -> list[bool]:
    """Which columns hold numbers, blanks apart: their digits stand below each other."""
    columns = zip(*table.rows, strict=True)
    return [all(re.match(r"[-+[]?\d|$", value) for value in column) for column in columns]
