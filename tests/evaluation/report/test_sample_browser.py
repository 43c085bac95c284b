"""The sample browser of report.html in a real one: what it shows, finds and lets pass."""

import json
import re
import shutil
import socket
from itertools import pairwise
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect, sync_playwright

from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.metrics.comparisons import TIE
from rlhf_recipes.evaluation.metrics.failures import DEFINITIONS
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.win_rate import win_scores

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\n"
    "</script><script>document.title='owned'</script> </noscript><!-- ${document.title='owned'}\n"
    "````html\n<b onclick=alert(1)>*bold*</b>\n```` {{ 7 * 7 }} &lt; &amp; \u2028 \\u003c"
)
WORD = "unbroken" * 60
# By prompt: what base says, what the policy says, and which of its words are new.
DIFFERENCES: tuple[tuple[str, str, list[str]], ...] = (
    ("one two three four", "one two five four and", ["five four and"]),
    ("one two three", "one two three", []),
    ("Yes", "Yes", []),
    ("", "all of it", ["all of it"]),
    ("same start here", "new  same start", ["new"]),
    ("one two three four five", "one two, three four five", ["two,"]),
)
INJECTED = """async (address) => {
  const script = document.createElement("script");
  script.textContent = "document.title = 'owned'";
  const picture = document.createElement("img");
  picture.src = address;
  document.body.append(script, picture);
  await fetch(address, { signal: AbortSignal.timeout(2000) }).catch(() => {});
}"""
# Every prompt the filters let pass, in order.
WALK = """() => {
  const press = (name) => document.querySelector(`button[data-do="${name}"]`).click();
  const count = parseInt(document.getElementById("state").textContent), seen = [];
  for (let i = 0; i < count; i++) press("previous");
  for (let i = 0; i < count; i++) {
    seen.push(parseInt(document.querySelector("#view h3").textContent.split(" ")[1]));
    press("next");
  }
  return seen;
}"""
# The lowest contrast of any visible text with what is painted behind it, and which text it is.
CONTRAST = """() => {
  const light = (rgb) => {
    const part = (v) => v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
    return .2126 * part(rgb[0]) + .7152 * part(rgb[1]) + .0722 * part(rgb[2]);
  };
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = rgb(getComputedStyle(node).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
  };
  let worst = [99, ""], count = 0;
  const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const at = nodes.currentNode.parentElement;
    if (!nodes.currentNode.data.trim() || !at.checkVisibility()) continue;
    count++;
    const [a, b] = [light(rgb(getComputedStyle(at).color)), light(ground(at))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, nodes.currentNode.data];
  }
  return [...worst, count];
}"""


@pytest.fixture(scope="module")
def chromium():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=QUIET)


@pytest.fixture
def said():
    """What the console of any opened page said."""
    return []


@pytest.fixture
def opened(chromium, said):
    """Opens a run's report. What it asked for or complained of is held against it at the end."""
    contexts, asked = [], []

    def open_report(output, fragment="", **options):
        options = {"viewport": {"width": 1280, "height": 900}} | options
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        address = (output / "results" / "report.html").as_uri()
        page.on("request", lambda request: asked.append(request))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address + fragment)
        return page

    yield open_report
    for context in contexts:
        context.close()
    # What the page's own policy refuses never leaves it.
    left = [request.url for request in asked if request.failure != "csp"]
    assert left and all(re.match(r"data:|file:.*/report\.html(#|$)", url) for url in left)
    assert said == []


@pytest.fixture(scope="module")
def crafted(tmp_path_factory, records_of, collection_in):
    """Answers that try to be markup, and answers of known difference to base."""
    models = {name: records_of(name, (0, 0, 1), 12, 1) for name in ("base", "dpo")}
    for i, (said, says, _) in enumerate(DIFFERENCES):
        models["base"][i]["response"], models["dpo"][i]["response"] = said, says
    for records in models.values():
        records[11]["prompt"] = HOSTILE
    models["dpo"][11]["response"] = HOSTILE
    models["dpo"][9]["response"] = models["base"][9]["prompt"] = models["dpo"][9]["prompt"] = WORD
    models["dpo"][10]["response"] = models["base"][10]["response"] = "long " * 2001
    output = collection_in(tmp_path_factory.mktemp("crafted") / "out", models)
    analyze(output)
    return output


def data_of(output):
    results = json.loads((output / "results" / "evaluation_results.json").read_text())
    return results, read_samples(output / "samples")


def outcomes(collection, name):
    metric, model = collection.primary, collection.models[name]
    won = win_scores(model.scores(metric), collection.base.scores(metric), TIE)
    return ["won" if share > 0.5 else "lost" if share < 0.5 else "tied" for share in won]


def state(page):
    return page.get_by_role("status").inner_text()


def card(page, name):
    heading = page.get_by_role("heading", name=name)
    return page.locator("#view").get_by_role("article").filter(has=heading)


def test_model_text_is_shown_verbatim_and_never_runs(opened, crafted):
    page = opened(crafted, "#prompt=11&marks=off")
    texts = page.locator("#view .text").all()
    assert [text.text_content() for text in texts].count(HOSTILE) == 2
    assert page.title() == "RLHF evaluation"
    assert page.locator("#view :is(script, img, b[onclick])").count() == 0
    assert page.locator("script").count() == 2


def test_a_marked_answer_is_the_same_text(opened, crafted):
    page = opened(crafted, "#prompt=11")
    assert card(page, "dpo").locator(".text").text_content() == HOSTILE
    assert page.title() == "RLHF evaluation"


def test_the_content_security_policy_blocks_an_injected_script(opened, said, crafted):
    page = opened(crafted)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        page.evaluate(INJECTED, address)
        with pytest.raises(TimeoutError):
            server.accept()
    assert page.title() == "RLHF evaluation"
    assert len(said) >= 3 and all("Content Security" in said for said in said)
    said.clear()


def test_new_words_are_marked_and_d_takes_the_marks_away(opened, crafted):
    page = opened(crafted)
    for said, says, new in DIFFERENCES:
        assert card(page, "base").locator(".text").text_content() == said
        assert card(page, "base").locator("ins").count() == 0
        assert card(page, "dpo").locator("ins").all_text_contents() == new
        assert card(page, "dpo").locator(".text").text_content() == says
        page.keyboard.press("j")
    page = opened(crafted)
    assert "underline" in page.locator("#view ins").evaluate(
        "e => getComputedStyle(e).textDecoration"
    )
    page.keyboard.press("d")
    assert page.locator("#view ins").count() == 0 and "marks=off" in page.url


def test_texts_too_long_to_compare_are_shown_with_a_note(opened, crafted):
    page = opened(crafted, "#prompt=10")
    assert "too long" in card(page, "dpo").inner_text()
    assert card(page, "dpo").locator("ins").count() == 0
    assert card(page, "dpo").locator(".text").text_content() == "long " * 2001


@pytest.mark.parametrize("name", ["ppo", "grpo", "dpo"])
def test_an_outcome_filters_the_prompts_that_the_win_rate_counts(opened, evaluated, name):
    results, collection = data_of(evaluated)
    rate = results["models"][name]["win_rate"]["gold"]
    page = opened(evaluated)
    page.get_by_role("combobox", name="Model").select_option(name)
    for outcome, key in (("won", "wins"), ("tied", "ties"), ("lost", "losses")):
        page.get_by_role("combobox", name="Against base").select_option(outcome)
        expected = [i for i, found in enumerate(outcomes(collection, name)) if found == outcome]
        assert state(page).startswith(f"{rate[key]} of 64 prompts") and len(expected) == rate[key]
        assert page.evaluate(WALK) == expected


def test_with_several_samples_the_outcome_is_that_of_all_pairs(opened, searched):
    _, collection = data_of(searched)
    page = opened(searched, "#prompt=0&model=dpo-seed2&outcome=won")
    expected = [i for i, o in enumerate(outcomes(collection, "dpo-seed2")) if o == "won"]
    assert 0 < len(expected) < 40 and page.evaluate(WALK) == expected
    won = win_scores(
        collection.models["dpo-seed2"].scores("gold"), collection.base.scores("gold"), TIE
    )
    for prompt in expected[:2]:
        page.goto(page.url.partition("#")[0] + f"#prompt={prompt}&model=dpo-seed2")
        counted = f"won {100 * won[prompt]:.0f}% of 16 pairs"
        expect(card(page, "dpo-seed2")).to_contain_text(counted)


def test_with_one_sample_each_the_badge_is_the_difference_of_the_scores_shown(opened, evaluated):
    _, collection = data_of(evaluated)
    page = opened(evaluated, "#prompt=4")
    gaps = collection.models["ppo"].scores("gold") - collection.base.scores("gold")
    badge = card(page, "ppo").locator(".outcome").inner_text()
    assert float(badge.split()[-1]) == pytest.approx(gaps[4, 0], rel=6e-3)
    assert ("won" in badge) == (gaps[4, 0] > 0)


def test_each_failure_filters_the_prompts_it_fired_on(opened, evaluated):
    results, collection = data_of(evaluated)
    page = opened(evaluated)
    found: dict[str, set[int]] = {detector: set() for detector in DEFINITIONS}
    for model in collection.models.values():
        for record in model.flat:
            for flag in results["flags"].get(record["id"], []):
                found[flag].add(record["prompt_id"])
    assert sum(map(bool, found.values())) >= 4
    for detector, prompts in found.items():
        page.get_by_role("combobox", name="Failure").select_option(detector)
        assert page.evaluate(WALK) == sorted(prompts)
    page.get_by_role("combobox", name="Failure").select_option("any")
    assert page.evaluate(WALK) == sorted(set.union(*found.values()))


def test_outcome_and_failure_are_asked_of_one_and_the_same_model(opened, evaluated):
    results, collection = data_of(evaluated)
    flagged = {
        (record["model"], record["prompt_id"])
        for model in collection.models.values()
        for record in model.flat
        if "truncated" in results["flags"].get(record["id"], [])
    }
    lost = {n: outcomes(collection, n) for n in ("ppo", "grpo", "dpo")}
    page = opened(evaluated, "#prompt=0&outcome=lost&failure=truncated")
    expected = {
        i for n, o in lost.items() for i in range(64) if o[i] == "lost" and (n, i) in flagged
    }
    apart = {i for i in range(64) if any(o[i] == "lost" for o in lost.values())}
    assert expected < apart & {i for _, i in flagged}
    assert page.evaluate(WALK) == sorted(expected)
    page.get_by_label("ppo").uncheck()
    expected = {
        i for n in ("grpo", "dpo") for i in range(64) if lost[n][i] == "lost" and (n, i) in flagged
    }
    assert page.evaluate(WALK) == sorted(expected)


@pytest.mark.parametrize("text", ["child of TEN", "clear step", "Assistant: More", "no such words"])
def test_text_is_found_in_prompts_and_in_all_answers(opened, evaluated, text):
    _, collection = data_of(evaluated)
    expected = [
        i
        for i, row in enumerate(collection.base.records)
        if any(
            text.lower() in said.lower()
            for said in [row[0]["prompt"]]
            + [model.records[i][0]["response"] for model in collection.models.values()]
        )
    ]
    page = opened(evaluated)
    page.get_by_role("searchbox").fill(f" {text} ")
    assert page.evaluate(WALK) == expected
    if expected:
        assert page.evaluate("CSS.highlights.get('found').size") > 0
    else:
        assert state(page) == "0 of 64 prompts"
        assert "No prompt fits" in page.locator("#view").inner_text()


@pytest.mark.parametrize("order", ["gain", "loss", "kl"])
def test_prompts_are_ordered_by_gain_and_kl(opened, evaluated, order):
    _, collection = data_of(evaluated)
    page = opened(evaluated, f"#prompt=0&model=grpo&order={order}")
    grpo = collection.models["grpo"]
    gains = (grpo.scores("gold") - collection.base.scores("gold"))[:, 0]
    keys = {"gain": -gains, "loss": gains, "kl": -grpo.values("kl")[:, 0]}[order]
    found = [keys[i] for i in page.evaluate(WALK)]
    # Ordered by what is shown, three digits of it.
    assert len(found) == 64 and all(a <= b + 0.05 for a, b in pairwise(found))


def test_a_card_has_the_numbers_outcome_and_failures_of_its_sample(opened, evaluated):
    results, collection = data_of(evaluated)
    page = opened(evaluated, "#prompt=3")
    record = collection.models["ppo"].records[3][0]
    said = card(page, "ppo").inner_text()
    for value in (f"{record['gold']:.1f}", f"{record['kl']:.2f}", str(record["n_tokens"])):
        assert value in said
    assert outcomes(collection, "ppo")[3] in said
    assert all(flag in said for flag in results["flags"]["ppo-0003-0"])
    assert "repetition" in said and record["response"] in said


def test_samples_are_stepped_through_and_checkpoints_shown_on_demand(opened, searched):
    _, collection = data_of(searched)
    page = opened(searched)
    assert state(page) == "40 of 40 prompts, no. 1, sample 1 of 4"
    page.get_by_role("button", name="Next sample").click()
    page.keyboard.press("l")
    for name in ("base", "dpo-seed1"):
        response = collection.models[name].records[0][2]["response"]
        assert card(page, name).locator(".text").text_content() == response
    assert card(page, "ppo-25").count() == 0
    page.get_by_label("ppo-25").check()
    assert card(page, "ppo-25").count() == 1
    page.keyboard.press("h")
    assert state(page).endswith("sample 2 of 4")


def test_keys_step_search_help_and_leave_fields_alone(opened, evaluated):
    page = opened(evaluated)
    for key, number in (("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("k", 1)):
        page.keyboard.press(key)
        assert state(page) == f"64 of 64 prompts, no. {number}"
    page.keyboard.press("/")
    page.keyboard.type("j?d/")
    assert page.get_by_role("searchbox").input_value() == "j?d/"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Reset").click()
    page.keyboard.press("?")
    page.keyboard.press("j")
    assert page.get_by_role("dialog", name="Keyboard shortcuts").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    page.get_by_role("checkbox", name="keyboard shortcuts").uncheck()
    page.keyboard.press("j")
    page.keyboard.press("Control+k")
    assert state(page) == "64 of 64 prompts, no. 1"


def test_an_address_restores_what_was_seen(opened, evaluated):
    page = opened(evaluated)
    page.get_by_role("combobox", name="Model").select_option("dpo")
    page.get_by_role("combobox", name="Against base").select_option("lost")
    page.get_by_role("searchbox").fill("tea & <b>")
    page.get_by_role("searchbox").fill("a")
    page.get_by_label("grpo").uncheck()
    page.get_by_label("mark what base").uncheck()
    page.get_by_role("button", name="Next prompt").click()
    again = opened(evaluated, "#" + page.url.partition("#")[2])
    for selector in ("#view", "#state"):
        assert again.locator(selector).inner_text() == page.locator(selector).inner_text()
    assert card(again, "grpo").count() == 0
    assert again.locator("#view").bounding_box()["y"] < 900
    again.goto(again.url.partition("#")[0] + "#prompt=7")
    expect(again.locator("#view h3").first).to_have_text("Prompt 7")
    assert state(again) == "64 of 64 prompts, no. 8"


def test_an_address_with_nonsense_is_harmless(opened, evaluated, searched):
    query = urlencode({"prompt": "<b>", "sample": -3, "model": "x", "failure": "y", "order": "z"})
    page = opened(evaluated, f"#{query}")
    assert state(page) == "64 of 64 prompts, no. 1"
    assert page.get_by_role("combobox", name="Order").input_value() == ""
    assert page.locator("select").evaluate_all("all => all.map(s => s.selectedIndex)") == [0] * 4
    assert state(opened(searched, "#prompt=5&sample=99")).endswith("no. 6, sample 4 of 4")


def test_an_example_of_a_failure_leads_to_its_sample(opened, evaluated):
    page = opened(evaluated)
    page.locator("#failures").get_by_role("link", name="ppo-0003-0").first.click()
    expect(page.locator("#view h3").first).to_have_text("Prompt 3")  # the address changes later


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_page_never_scrolls_sideways(opened, searched, width):
    page = opened(searched, "#prompt=1", viewport={"width": width, "height": 800}, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_label("ppo-25").check()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.get_by_role("button", name="Next prompt").bounding_box()["height"] >= 34
    last = page.locator("#view").get_by_role("article").last
    last.scroll_into_view_if_needed()
    box = last.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_a_word_of_any_length_stays_in_its_card(opened, crafted):
    page = opened(crafted, "#prompt=9", viewport={"width": 390, "height": 800})
    assert WORD in card(page, "dpo").inner_text()
    fits = "all => all.every(e => e.scrollWidth <= e.clientWidth && e.clientWidth < 390)"
    assert page.locator("#view .text").evaluate_all(fits)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_contrasts_with_its_ground(opened, evaluated, scheme):
    page = opened(evaluated, "#prompt=3", color_scheme=scheme)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    ratio, text, count = page.evaluate(CONTRAST)
    assert count > 500
    assert ratio >= 4.5, f"{ratio:.2f}: {text}"
    page.keyboard.press("?")
    assert page.evaluate(CONTRAST)[0] >= 4.5


def test_everything_has_a_name_and_a_place_for_a_screen_reader(opened, evaluated):
    page = opened(evaluated)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    nodes = [
        (n["role"]["value"], n["name"]["value"]) for n in tree if not n["ignored"] and "name" in n
    ]
    named = {"button", "checkbox", "combobox", "searchbox", "link", "image", "region", "search"}
    assert named <= {role for role, _ in nodes}
    assert [role for role, name in nodes if role in named and not name] == []
    for role in ("main", "navigation", "banner", "search", "status"):
        assert page.get_by_role(role).count() == 1, role
    levels = [int(h.evaluate("e => e.tagName[1]")) for h in page.get_by_role("heading").all()]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    page.keyboard.press("Tab")
    assert "Skip" in page.evaluate("document.activeElement.textContent")


def test_without_a_script_the_chosen_prompts_can_be_read(opened, evaluated):
    results, collection = data_of(evaluated)
    page = opened(evaluated, java_script_enabled=False)
    assert not page.locator("#browser").is_visible()
    section = page.locator("#samples")
    first, second, *others = (choice["row"] for choice in results["samples_shown"]["prompts"])
    assert section.locator("details:visible").count() == 1 + len(others)
    for row, place in ((first, page.locator("#one-prompt")), (second, section)):
        for name in ("base", "ppo", "grpo", "dpo"):
            response = collection.models[name].records[row][0]["response"]
            assert response.splitlines()[0] in place.inner_text()


@pytest.mark.parametrize("script", [True, False])
def test_one_prompt_stands_on_top_with_the_completions_of_all_models(opened, evaluated, script):
    results, collection = data_of(evaluated)
    page = opened(evaluated, java_script_enabled=script)
    shown = page.locator("#one-prompt article")
    row = results["samples_shown"]["prompts"][0]["row"]
    assert shown.count() == len(collection.models) == 4
    for name, text in zip(collection.models, shown.all_inner_texts(), strict=True):
        assert text.startswith(name)
        assert collection.models[name].records[row][0]["response"] in text


def test_the_browser_is_one_click_or_one_key_away(opened, evaluated):
    page = opened(evaluated)
    page.get_by_role("link", name="All 64 prompts").click()
    assert 0 <= page.locator("#samples").bounding_box()["y"] < 100
    page = opened(evaluated)
    page.keyboard.press("j")
    assert 0 <= page.locator("#view").bounding_box()["y"] < 900


def test_every_column_of_the_verdict_is_in_reach_on_a_phone(opened, evaluated):
    page = opened(evaluated, viewport={"width": 390, "height": 844}, is_mobile=True)
    cells = page.locator("#verdict tbody td")
    assert cells.count() == 3 * 6
    for box in cells.evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON())"):
        assert box["left"] >= 0 and box["right"] <= 390
    assert page.locator("#verdict .scroll").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_a_term_has_its_meaning_by_hover_and_by_link(opened, evaluated):
    page = opened(evaluated)
    term = page.locator("#verdict").get_by_role("link", name="KL", exact=True)
    assert "divergence" in term.get_attribute("title")
    term.click()
    assert page.locator("#kl").inner_text() == "KL"
    assert page.locator("#kl").bounding_box()["y"] < 900
