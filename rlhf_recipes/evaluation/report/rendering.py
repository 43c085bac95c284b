"""ANALYSIS.md from its template, report.html from that Markdown, and the closing table."""

import base64
import hashlib
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_recipes.evaluation.metrics.failures import Failure
from rlhf_recipes.evaluation.metrics.reward_model import Pair, Slice
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.report import sentences as say
from rlhf_recipes.evaluation.report.figures import control_rates, model_colors
from rlhf_recipes.evaluation.report.headline import headline, judged_by_sentence
from rlhf_recipes.evaluation.report.page import anchor, sections
from rlhf_recipes.evaluation.report.sample_browser import browser_data, sample_facts
from rlhf_recipes.evaluation.report.sentences import number, percent
from rlhf_recipes.evaluation.results import EvaluationResults
from rlhf_recipes.terminal import UNPRINTABLE, printable

TITLE = "RLHF evaluation"
WIDTH = 100
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    "base-uri 'none'; form-action 'none'"
)
TEMPLATES = Path(__file__).parent / "templates"


def render_markdown(
    results: EvaluationResults,
    failures: Mapping[str, Failure],
    collection: Collection,
    wrong_pairs: Sequence[Pair],
    width: int | None = WIDTH,
) -> str:
    """Render ANALYSIS.md, with the lines of prompts and completions wrapped at `width`.

    They stand in fences longer than any run of backticks in them, so that they stay inert. Control
    characters are escaped: a terminal that shows the file obeys none of them.
    """
    environment = _environment(autoescape=False)
    environment.filters |= {
        name: getattr(say, name)
        for name in (
            *("number", "signed", "gain", "gain_span", "percent", "p_value", "span", "optional"),
            *("correlation", "estimate", "duration"),
        )
    } | {
        "anchor": anchor,
        "code": _code,
        "fenced": lambda text: _fenced(text, width),
        "fired": _fired,
        "informative_slices": _informative_slices,
        "plain": _plain,
    }
    text = environment.get_template("ANALYSIS.md.j2").render(
        title=TITLE,
        results=results,
        failures=failures,
        collection=collection,
        wrong_pairs=wrong_pairs,
        control_rates=control_rates,
        facts=_facts,
        headline=headline,
        judged_by_sentence=judged_by_sentence,
        rate=say.rate,
        say=say,
        sample_facts=sample_facts,
        setup_sentence=say.setup_sentence,
    )
    # One blank line at most, except within a fence, which is someone else's text.
    blank_lines = re.compile(r"^(`{3,})text\n.*?\n\1$|\n{3,}", re.DOTALL | re.MULTILINE)
    return blank_lines.sub(lambda match: match[0] if match[1] else "\n\n", printable(text))


def render_html(
    markdown: str, results: EvaluationResults, collection: Collection, figures: Path
) -> str:
    """Render report.html: one file with its figures, style and script inside.

    The Markdown is read with raw HTML off, the samples for the script are JSON that cannot end
    their element, and a policy lets only this very script run and nothing be loaded.
    """
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = _environment(autoescape=True)
    environment.filters |= {"anchor": anchor, "inert_json": _inert_json}
    text = environment.get_template("report.html.j2").render(
        title=TITLE,
        sections=sections(markdown, figures, model_colors(results), results.flags),
        config=results.config,
        data=browser_data(results, collection),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=POLICY.format(digest=digest),
    )
    return printable(text)


def closing_table(results: EvaluationResults) -> str:
    """Return a table for the terminal, one row per model, and where the report is.

    Claims belong to the primary metric; the proxy is what was trained on.
    """
    config, metrics = results.config, list(reversed(results.config.metrics))
    header = ["method", *(f"{m} reward" for m in metrics), *(f"{m} win rate" for m in metrics)]
    rows = [[*header, "KL", "length"]]
    for name, model in results.models.items():
        row = [name, *(number(model.rewards[m].mean) for m in metrics)]
        for metric in metrics:
            win = model.win_rate.get(metric)
            row.append(say.rate(win.value, win.ci) if win else "-")
        rows.append([*row, number(model.kl.seq), f"{model.length.mean:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = ("  ".join(_padded(row, widths)) for row in rows)
    rule = "-" * len(first)
    notes = (
        f"{config.n_prompts} prompts; win rate over base with {percent(config.confidence)} "
        "interval; KL to base in nats per completion; length in tokens"
    )
    lines = [first, rule, *others, rule, *textwrap.wrap(notes, len(rule))]
    return "\n".join([*lines, f"Report: {results.report}"])


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


def _fenced(text: str, width: int | None) -> str:
    """Put text in a fence of more backticks than any run in it, so that nothing in it ends it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = text.splitlines()
    if width:
        lines = [part for line in lines for part in textwrap.wrap(line, width) or [""]]
    return "\n".join([f"{fence}text", *lines, fence])


def _plain(value: object) -> str:
    """Escape what Markdown would read as markup, on one line."""
    return re.sub(r"([\\`*_\[\]<>|&!])", r"\\\1", " ".join(str(value).split()))


def _code(text: str) -> str:
    return f"`{text}`"


def _fired(failures: Mapping[str, Failure], names: Sequence[str]) -> list[str]:
    """Return the detectors that fire on some completion of these models."""
    return [d for d, f in failures.items() if any(f.per_model[name].rate for name in names)]


def _informative_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Return the slices of those properties that have more than one value."""
    properties = [row.slice for row in slices]
    return [row for row in slices if properties.count(row.slice) > 1]


def _facts(results: EvaluationResults) -> dict[str, Any]:
    """Return what was compared and how, by name; None where the collection does not say."""
    run, config = results.run, results.config
    record = run.get("run") or {}
    adapters = {
        f"adapter {name}": model["adapter"] + _fingerprint(model)
        for name, model in run["models"].items()
        if model.get("adapter")
    }
    return {
        "base model": run.get("base"),
        "reward model (proxy)": run.get("reward_model"),
        "gold": run.get("gold") or "none",
        "data": run.get("dataset"),
        "prompts": config.n_prompts,
        "prompts also in training": run.get("prompts_in_training"),
        "completions per prompt": config.samples_per_prompt,
        "completions of base": config.base_samples_per_prompt,
        "generation": _pairs(run.get("generation") or {}),
        "chat template arguments": _pairs(run.get("chat_template_kwargs") or {}),
        "seed": run.get("seed"),
        "code": record.get("git_commit"),
        "collected": record.get("created"),
        "versions": _pairs(record.get("versions") or {}),
        **adapters,
    }


def _fingerprint(model: Mapping[str, Any]) -> str:
    return f" (sha256 {model['fingerprint']})" if model.get("fingerprint") else ""


def _pairs(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _inert_json(data: Mapping[str, Any]) -> Markup:
    """Write JSON without a control character, or one that could end or begin an element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    unsafe = rf"[<>&\u2028\u2029]|{UNPRINTABLE.pattern}"
    return Markup(re.sub(unsafe, lambda match: f"\\u{ord(match[0]):04x}", text))
