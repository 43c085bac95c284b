import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.metrics.training_logs import TrainingCost
from rlhf_recipes.evaluation.report.rendering import closing_table

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
    analyze(output)
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


def test_every_link_leads_to_a_section_a_term_or_a_sample(evaluated):
    tags = tags_of(evaluated)
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    sections = {attrs["id"] for tag, attrs in tags if tag == "section"}
    links = {attrs["href"][1:] for tag, attrs in tags if tag == "a"}
    samples = {link for link in links if link.startswith("prompt=")}
    terms = links - samples - sections
    assert len(ids) == len(set(ids)) and links - samples <= set(ids)
    assert sections <= links and len(sections) > 8 and samples
    assert {"kl", "holm-p", "win-rate", "pareto-front", "nats", "proxy", "gold"} <= terms


def test_both_reports_say_the_same(evaluated):
    html = (evaluated / "results" / "report.html").read_text()
    markdown = (evaluated / "ANALYSIS.md").read_text()
    for heading in re.findall(r"^## (.*)$", markdown, flags=re.MULTILINE):
        assert f"<h2>{heading}</h2>" in html
    assert "is the best model by gold" in html and "is the best model by gold" in markdown
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
    results = analyze(evaluated)
    table = closing_table(results)
    lines = table.splitlines()
    assert max(map(len, lines[:-1])) <= 100 and table.isascii()
    assert lines[0].split()[:3] == ["method", "gold", "reward"]
    assert [line.split()[0] for line in lines[2:6]] == ["base", "ppo", "grpo", "dpo"]
    rate = results.models["ppo"].win_rate["gold"]
    assert f"{100 * rate.value:.0f}% [{100 * rate.ci[0]:.0f}, " in lines[3]
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
    analyze(output)
    for path in (output / "ANALYSIS.md", output / "results" / "report.html"):
        text = path.read_text(encoding="utf-8")
        assert "owned" in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


def test_a_fence_holds_a_text_to_the_letter(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 12, 1) for name in ("base", "ppo")}
    text = "one\n\n\n\n`````\nfive | six"
    for record in models["ppo"]:
        record["response"] = text
    output = collection_in(tmp_path / "out", models)
    analyze(output)
    assert f"``````text\n{text}\n``````\n" in (output / "ANALYSIS.md").read_text()
    assert f'<div class="text">{text}</div>' in (output / "results" / "report.html").read_text()


def test_names_from_the_data_are_no_markup(tmp_path, records_of, collection_in, pairs):
    models = {name: records_of(name, (0, 0, 1), 12, 1) for name in ("base", "ppo")}
    output = collection_in(tmp_path / "out", models, dataset="![x](y) | <b>[z](#verdict)</b>")
    scores = output / "models" / "reward_model" / "scores.json"
    scores.parent.mkdir(parents=True)
    sources = ("<i>one</i> | `two`", "*three*")
    named = [pair | {"source": sources[i % 2]} for i, pair in enumerate(pairs)]
    scores.write_text(json.dumps(named))
    analyze(output)
    tags = [tag for tag, _ in tags_of(output)]
    assert not {"b", "i", "em"} & set(tags)
    html = (output / "results" / "report.html").read_text()
    for text in ("![x](y) | &lt;b&gt;[z](#verdict)&lt;/b&gt;", "&lt;i&gt;one&lt;/i&gt; | `two`"):
        assert text in html
    assert "*three*" in html


def test_uninformative_columns_are_left_out(evaluated, pairs):
    """One source in all pairs, detectors that never fire, self-BLEU of one completion a prompt."""
    text = (evaluated / "ANALYSIS.md").read_text()
    assert {pair["source"] for pair in pairs} == {"demo"}
    assert "| turns |" in text and "| source |" not in text
    assert "| repetition |" in text and "| refusal |" not in text
    assert "No completion fires" in text and "`refusal`" in text
    assert "self-BLEU within a prompt" not in text
    assert "undefined" not in text


def test_a_control_that_failed_is_said_first(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 12, 1) for name in ("base", "ppo", "control")}
    analyze(collection_in(tmp_path / "out", models))
    first = (tmp_path / "out" / "ANALYSIS.md").read_text().split("\n\n")[1]
    assert first.startswith("> Sanity check **failed** on kl")


def test_what_training_took_stands_in_the_verdict(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 12, 1) for name in ("base", "ppo", "dpo")}
    output = collection_in(tmp_path / "out", models)
    facts = json.loads((output / "samples" / "collection.json").read_text())
    facts["models"]["ppo"]["fingerprint"] = "of-ppo"
    (output / "samples" / "collection.json").write_text(json.dumps(facts))
    run = {
        "stage": "ppo",
        "fingerprint": "of-ppo",
        "duration_seconds": 195.0,
        "recipe": {"gradient_accumulation_steps": 4},
        "processes": 2,
    }
    assert analyze(output).training == {}
    assert "training time" not in (output / "ANALYSIS.md").read_text()
    folder = output / "models" / "ppo_model"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run))
    state = {"train_batch_size": 3, "log_history": [{"step": 8, "loss": 1.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    assert analyze(output).training == {"ppo": TrainingCost(195.0, 192, "episodes")}
    table = (output / "ANALYSIS.md").read_text()
    assert re.search(r"\| ppo \|.*\| 3.25 min \| 192 episodes \|", table)
    assert re.search(r"\| dpo \|.*\|  \|  \|", table)
