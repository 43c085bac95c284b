import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from rlhf_recipes.evaluation import analyse, closing_table

HOSTILE = (
    "\u2028"
    '<script>alert("x")</script> | **bold** `code` </details> ![x](http://example.org)\n'
    "````\n<script>alert(2)</script>"
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, records_of, collection_in):
    """A run in which one model answers everything with markup."""
    models = {name: records_of(name, (0, 0, 1), 8, 1) for name in ("base", "dpo")}
    for record in models["dpo"]:
        record["response"] = HOSTILE
    for records in models.values():
        records[0]["prompt"] = records[0]["prompt"] + " <img src=x onerror=alert(1)>"
    output = collection_in(tmp_path_factory.mktemp("hostile") / "out", models)
    analyse(output)
    return output


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def tags_of(output):
    parser = Tags()
    parser.feed((output / "results" / "report.html").read_text())
    return parser.tags


def test_what_models_write_stays_text_in_html(hostile):
    scripts = [attrs for tag, attrs in tags_of(hostile) if tag == "script"]
    assert scripts == [{"id": "samples-data", "type": "application/json"}, {}]
    assert not any("onerror" in attrs for _, attrs in tags_of(hostile))
    assert "&lt;script&gt;" in (hostile / "results" / "report.html").read_text()


def test_the_samples_for_the_script_are_all_there_and_hold_no_markup(hostile):
    html = (hostile / "results" / "report.html").read_text()
    text = html.partition('type="application/json">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(text)
    data = json.loads(text)
    assert [answer["samples"][0]["text"] for answer in data["prompts"][0]["answers"]][1] == HOSTILE
    assert len(data["prompts"]) == 8


def test_only_the_script_of_the_page_may_run(evaluated):
    html = (evaluated / "results" / "report.html").read_text()
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs["content"] for _, attrs in tags_of(evaluated) if "http-equiv" in attrs)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["script-src"] == f"'sha256-{digest}'"


def test_what_models_write_stays_in_its_fence_in_markdown(hostile):
    text = (hostile / "ANALYSIS.md").read_text()
    # As CommonMark has it: any line of at least as many backticks closes a fence.
    fenced = re.compile(r"^(`{3,})text\n.*?\n\1`*$", flags=re.DOTALL | re.MULTILINE)
    outside = fenced.sub("", text)
    assert "<script>" in text and "<script>" not in outside and "onerror" not in outside


def test_the_report_loads_nothing_from_elsewhere(evaluated):
    for tag, attrs in tags_of(evaluated):
        assert tag not in ("link", "iframe", "base")
        assert tag == "img" or "src" not in attrs
        if tag == "img":
            assert attrs["src"].startswith("data:image/png;base64,") and attrs["alt"]
        if tag == "a":
            assert attrs["href"].startswith("#")
    assert "url(" not in (evaluated / "results" / "report.html").read_text()


def test_every_link_of_the_contents_leads_to_a_section(evaluated):
    tags = tags_of(evaluated)
    ids = {attrs["id"] for tag, attrs in tags if tag == "section"}
    links = {attrs["href"][1:] for tag, attrs in tags if tag == "a"}
    samples = {link for link in links if link.startswith("prompt=")}
    assert links - samples == ids and len(ids) > 8 and samples


def test_both_reports_say_the_same(evaluated):
    html = (evaluated / "results" / "report.html").read_text()
    markdown = (evaluated / "ANALYSIS.md").read_text()
    for heading in re.findall(r"^## (.*)$", markdown, flags=re.MULTILINE):
        assert f"<h2>{heading}</h2>" in html
    for cell in re.findall(r"\d+% \[\d+, \d+\]", markdown):
        assert cell in html


def test_tables_have_as_many_cells_in_each_row_as_columns(evaluated):
    widths = []
    for line in (evaluated / "ANALYSIS.md").read_text().splitlines():
        if line.startswith("|"):
            widths.append(line.count("|"))
        elif widths:
            assert len(set(widths)) == 1
            widths = []


def test_closing_table_fits_a_terminal_and_says_what_matters(evaluated):
    results = json.loads((evaluated / "results" / "evaluation_results.json").read_text())
    table = closing_table(results)
    lines = table.splitlines()
    assert max(map(len, lines[:-1])) <= 100 and table.isascii()
    assert lines[0].split()[:3] == ["method", "gold", "reward"]
    assert [line.split()[0] for line in lines[2:6]] == ["base", "ppo", "grpo", "dpo"]
    rate = results["models"]["ppo"]["win_rate"]["gold"]
    assert f"{100 * rate['value']:.0f}% [{100 * rate['ci'][0]:.0f}, " in lines[3]
    assert lines[-1].endswith("report.html")


def test_no_control_character_of_a_completion_reaches_the_report_raw(
    tmp_path, records_of, collection_in
):
    """Colors, titles and cursor movements of a terminal, overrides of direction, a surrogate."""
    hostile = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eright\x08\x7f"
    models = {name: records_of(name, (0, 0, 1), 12, 1) for name in ("base", "ppo")}
    for record in models["base"] + models["ppo"]:
        record["response"] += hostile
        record["prompt"] += hostile
    output = collection_in(tmp_path / "out", models)
    analyse(output)
    for path in (output / "ANALYSIS.md", output / "results" / "report.html"):
        text = path.read_text(encoding="utf-8")
        assert "owned" in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
