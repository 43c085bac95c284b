"""Every format gives the same pair, and any other layout is refused with a remedy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import Prepared, prepare
from rlhf_recipes.preferences.reader import Reader
from rlhf_recipes.preferences.shapes import Pair, UnusableRow
from rlhf_recipes.preferences.turns import parse_pair

PROMPT = "How many legs has a spider?"
CHOSEN, REJECTED = "It has eight legs.", "It has six legs."  # they begin alike: "It has"
USER = {"role": "user", "content": PROMPT}
GOOD = {"role": "assistant", "content": CHOSEN}
BAD = {"role": "assistant", "content": REJECTED}
SYSTEM = {"role": "system", "content": "Be brief."}


def sharegpt(message: dict[str, str]) -> dict[str, str]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"from": names[message["role"]], "value": message["content"]}


def parts(message: dict[str, str]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def parse(row: dict[str, Any], columns: dict[str, str | None] | None = None) -> Pair:
    return parse_pair(Reader(columns)(row, "rows:1"), "rows", "rows:1", set())


def reason(row: dict[str, Any]) -> str:
    with pytest.raises(UnusableRow) as unusable:
        parse(row)
    return unusable.value.reason


COMPLETIONS = {"chosen": CHOSEN, "rejected": REJECTED}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "TRL explicit": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL implicit, OpenRLHF": {"chosen": [USER, GOOD], "rejected": [USER, BAD], "tools": None},
    "OpenRLHF with single messages": {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    "HH-RLHF": {
        "chosen": f"\n\nHuman: {PROMPT}\n\nAssistant: {CHOSEN}",
        "rejected": f"\n\nHuman: {PROMPT}\n\nAssistant: {REJECTED}",
    },
    "HH-RLHF on single lines": {
        "chosen": f"Human: {PROMPT}\nAssistant: {CHOSEN}",
        "rejected": f"Human: {PROMPT}\nAssistant: {REJECTED}",
    },
    "HH-RLHF, prompt apart": {
        "prompt": f"\n\nHuman: {PROMPT}\n\nAssistant:",
        "response": "x",
        "chosen": f" {CHOSEN}",
        "rejected": f" {REJECTED}",
    },
    "prompt of one line per turn": {"prompt": f"Human: {PROMPT}\nAssistant:", **COMPLETIONS},
    "User and Assistant": {
        "chosen": f"User: {PROMPT}\n\nAssistant: {CHOSEN}",
        "rejected": f"User: {PROMPT}\n\nAssistant: {REJECTED}",
    },
    "headings": {
        "chosen": f"### Human: {PROMPT}\n### Assistant: {CHOSEN}",
        "rejected": f"### Human: {PROMPT}\n### Assistant: {REJECTED}",
    },
    "ChatML": {
        side: f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"
        for side, text in COMPLETIONS.items()
    },
    "ChatML, prompt apart": {
        "prompt": f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n",
        "chosen": f"{CHOSEN}<|im_end|>",
        "rejected": f"{REJECTED}<|im_end|>",
    },
    "Llama 3": {
        side: "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{PROMPT}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{text}<|eot_id|>"
        for side, text in COMPLETIONS.items()
    },
    "questions and answers": {
        "chosen": f"Question: {PROMPT}\nAnswer: {CHOSEN}",
        "rejected": f"Question: {PROMPT}\nAnswer: {REJECTED}",
    },
    "UltraFeedback": {
        "prompt": PROMPT,
        "prompt_id": "a1",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
        "score_chosen": 8.0,
    },
    "LLaMA-Factory, Alpaca": {"instruction": PROMPT, "input": "", **COMPLETIONS},
    "LLaMA-Factory, ShareGPT": {
        "conversations": [sharegpt(USER)],
        "chosen": sharegpt(GOOD),
        "rejected": sharegpt(BAD),
    },
    "ShareGPT in both answers": {
        "chosen": [sharegpt(USER), sharegpt(GOOD)],
        "rejected": [sharegpt(USER), sharegpt(BAD)],
    },
    "ms-swift": {"messages": [USER, GOOD], "rejected_response": REJECTED},
    "ms-swift, messages": {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
    "messages and texts": {"messages": [USER], **COMPLETIONS},
    "Orca": {"system": "", "question": PROMPT, **COMPLETIONS},
    "distilabel": {"system": "", "input": PROMPT, **COMPLETIONS, "rating": [5, 2]},
    "Argilla": {"instruction": PROMPT, "chosen_response": CHOSEN, "rejected_response": REJECTED},
    "PKU-SafeRLHF": {
        "prompt": PROMPT,
        "response_0": REJECTED,
        "response_1": CHOSEN,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "SHP": {"history": PROMPT, "human_ref_A": CHOSEN, "human_ref_B": REJECTED, "labels": 1},
    "HelpSteer2": {
        "prompt": PROMPT,
        "response_1": CHOSEN,
        "response_2": REJECTED,
        "preference_strength": -2,
    },
    "HelpSteer3": {
        "context": [USER],
        "response1": REJECTED,
        "response2": CHOSEN,
        "overall_preference": 1,
    },
    "AlpacaEval": {
        "instruction": PROMPT,
        "output_1": REJECTED,
        "output_2": CHOSEN,
        "preference": 1.7,
    },
    "Chatbot Arena": {
        "conversation_a": [USER, BAD],
        "conversation_b": [USER, GOOD],
        "winner": "model_b",
        "turn": 1,
    },
    "WebGPT": {
        "question": {"full_text": PROMPT},
        "answer_0": CHOSEN,
        "answer_1": REJECTED,
        "score_0": 0.5,
        "score_1": -0.5,
    },
    "OpenAI": {
        "input": {"messages": [USER]},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    },
    "messages as JSON": {
        "prompt": PROMPT,
        "chosen": json.dumps([USER, GOOD]),
        "rejected": json.dumps([USER, BAD]),
    },
    "messages as Python writes them": {
        "prompt": str([USER]),
        "chosen": str([GOOD]),
        "rejected": str([BAD]),
    },
    "content in parts": {
        "prompt": [parts(USER)],
        "chosen": [parts(GOOD)],
        "rejected": [parts(BAD)],
    },
    "other capitals": {"Question": PROMPT, "Chosen": CHOSEN, " Rejected": REJECTED},
}


@pytest.mark.parametrize("row", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_format_gives_the_same_pair(row: dict[str, Any]) -> None:
    assert parse(row) == Pair([USER], [GOOD], [BAD], turns=1, source="rows", location="rows:1")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        {"system": "Be brief.", "question": PROMPT, **COMPLETIONS},
        {"system": "Be brief.", "prompt": PROMPT, **COMPLETIONS},
        {"system": "Be brief.", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"system_prompt": "Be brief.", "messages": [USER], **COMPLETIONS},
        {"prompt": [SYSTEM | {"role": "developer"}, USER], "chosen": [GOOD], "rejected": [BAD]},
        {
            "chosen": f"System: Be brief.\n\nHuman: {PROMPT}\n\nAssistant: {CHOSEN}",
            "rejected": f"System: Be brief.\n\nHuman: {PROMPT}\n\nAssistant: {REJECTED}",
        },
    ],
)
def test_a_system_turn_is_kept_wherever_it_is_given(row: dict[str, Any]) -> None:
    pair = parse(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([SYSTEM, USER], [GOOD], [BAD])


def test_input_and_history_are_part_of_the_prompt() -> None:
    row = {
        "instruction": "Translate.",
        "input": "Hund",
        "history": [["Hi", "Hello"]],
        **COMPLETIONS,
    }
    assert parse(row | COMPLETIONS).prompt == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Translate.\nHund"},
    ]


def test_the_prompt_of_a_summary_has_the_format_of_openai() -> None:
    row = {
        "info": {"subreddit": "dogs", "title": "Mine", "post": "He barks."},
        "summaries": [{"text": " Loud."}, {"text": " Dog barks."}],
        "choice": 1,
    }
    pair = parse(row)
    assert pair.prompt == "SUBREDDIT: r/dogs\n\nTITLE: Mine\n\nPOST: He barks.\n\nTL;DR:"
    assert (pair.chosen, pair.rejected) == (" Dog barks.", " Loud.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": None, **COMPLETIONS}, "no_prompt"),
        ({"prompt": float("nan"), **COMPLETIONS}, "no_prompt"),
        ({"question": "", **COMPLETIONS}, "no_prompt"),
        ({"prompt": "Another?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompt_differs"),
        (
            {"prompt": [SYSTEM | {"content": "Be long."}, USER]}
            | {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            "prompt_differs",
        ),
        (
            {"prompt": [USER], "chosen": [GOOD | {"tool_calls": [{"name": "look"}]}]}
            | {"rejected": [BAD]},
            "not_text",
        ),
        (
            {"prompt": [USER], "chosen": [GOOD | {"reasoning_content": "Hm."}], "rejected": [BAD]},
            "not_text",
        ),
        (
            {"prompt": [USER | {"content": [{"type": "image_url", "image_url": "x"}]}]}
            | {"chosen": [GOOD], "rejected": [BAD]},
            "not_text",
        ),
        ({"prompt": [USER, GOOD, {"role": "tool", "content": "x"}], **COMPLETIONS}, "not_text"),
        ({"prompt": PROMPT, "chosen": CHOSEN, "rejected": [REJECTED, "Dunno."]}, "not_text"),
        ({"prompt": PROMPT, "chosen": "Half: \ud83d", "rejected": REJECTED}, "not_text"),
        ({"prompt": PROMPT, "chosen": "[{'role': 'user'} {'role'", "rejected": "x"}, "not_text"),
        (
            {"instruction": PROMPT, "output_1": "a", "output_2": "b", "preference": 1.5},
            "no_preference",
        ),
        (
            {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "winner": "tie"},
            "no_preference",
        ),
        # A transcript that cannot be split by turns is not split elsewhere either.
        ({"chosen": f"Human: {CHOSEN}", "rejected": f"Human: {REJECTED}"}, "broken_roles"),
        (
            {"chosen": f"A chat. USER: {PROMPT} ASSISTANT: {CHOSEN}"}
            | {"rejected": f"A chat. USER: {PROMPT} ASSISTANT: {REJECTED}"},
            "broken_roles",
        ),
    ],
)
def test_rows_that_would_be_misread_are_dropped(row: dict[str, Any], expected: str) -> None:
    assert reason(row) == expected


@pytest.mark.parametrize("name", ["tools", "images", "context", "documents"])
def test_a_column_that_changes_the_meaning_is_refused_until_it_is_dropped(name: str) -> None:
    row = {"prompt": PROMPT, **COMPLETIONS, name: [{"name": "look"}]}
    with pytest.raises(RecipeError, match=rf"rows:1 has a value in '{name}'") as error:
        parse(row)
    assert parse(row, remedy(error.value)).prompt == PROMPT
    assert parse(row | {name: None}).prompt == PROMPT


def remedy(error: RecipeError, which: int = 0) -> dict[str, str | None]:
    """The mapping that an error proposes."""
    mappings = re.findall(r"`columns: (\{.*?\})`", str(error))
    return dict(yaml.safe_load(mappings[which]))


def test_plain_text_with_a_column_that_could_be_the_prompt_is_refused() -> None:
    row = {"vraag": PROMPT, **COMPLETIONS}
    with pytest.raises(RecipeError, match="'vraag' could hold the prompt") as error:
        parse(row)
    assert parse(row, remedy(error.value)).prompt == [USER]
    assert parse(row, remedy(error.value, 1)).prompt == "It has"
    assert parse({"source": "web", "chosen_model": "m 1", "score": 3, **COMPLETIONS}).cut


@pytest.mark.parametrize(
    ("row", "nearest"),
    [
        ({"prompt": PROMPT, "completion": CHOSEN, "label": True}, "KTO"),
        ({"prompt": PROMPT, "responses": [CHOSEN, REJECTED], "scores": [1, 0]}, "a list of"),
        ({"prompt": PROMPT, "completion": CHOSEN}, "supervised fine-tuning"),
        ({"messages": [USER, GOOD]}, "supervised fine-tuning"),
        ({"human_ref_A": CHOSEN, "human_ref_B": REJECTED, "histories": PROMPT}, "SHP"),
        ({"step": 1, "loss": 2.0}, "TRL, explicit prompt"),
    ],
)
def test_other_layouts_are_refused_with_the_nearest_format(
    row: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(RecipeError, match="The nearest format is") as error:
        parse(row)
    assert nearest in str(error.value)
    assert all(repr(name) in str(error.value) for name in row)


@pytest.mark.parametrize(
    "row",
    [
        {"query_text": PROMPT, "good_answer": CHOSEN, "bad_answer": REJECTED},
        {"user_input": PROMPT, "preferred": CHOSEN, "dispreferred": REJECTED},
        {"question": PROMPT, "answer_better": CHOSEN, "answer_worse": REJECTED},
    ],
)
def test_the_proposed_mapping_reads_the_rows(row: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="set `columns: ") as error:
        parse(row)
    pair = parse(row, remedy(error.value))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [GOOD], [BAD])


def dataset(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepared(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Prepared:
    return prepare(DataArguments(dataset(folder, rows), **keys))


def numbered(number: int) -> dict[str, Any]:
    return {"prompt": f"{PROMPT} ({number})", **COMPLETIONS}


def dropped(result: Prepared) -> dict[str, int]:
    counts = {name: sum(d.count.values()) for name, d in result.dropped.items()}
    return {name: count for name, count in counts.items() if count}


def test_rows_without_their_prompt_are_never_cut(tmp_path: Path) -> None:
    rows = [*map(numbered, range(8)), {"prompt": None, **COMPLETIONS}, COMPLETIONS]
    result = prepared(tmp_path, rows)
    assert dropped(result) == {"no_prompt": 2}
    assert not result.findings.cut


def test_a_prompt_that_all_completions_repeat_is_removed_from_them(tmp_path: Path) -> None:
    rows = [numbered(i) for i in range(6)]
    repeated = [
        row | {side: f"{row['prompt']} {row[side]}" for side in COMPLETIONS} for row in rows
    ]
    result = prepared(tmp_path, repeated)
    assert {pair.chosen for pair in result.pairs["train"]} == {f" {CHOSEN}"}
    assert "begin with their prompt" in result.findings.notes[0]
    mixed = prepared(tmp_path, [*repeated[:5], rows[5]])  # one does not: it was chance
    assert not mixed.findings.notes


def test_columns_are_mapped_by_name_and_by_path(tmp_path: Path) -> None:
    rows = [
        {"q": f"{PROMPT} ({i})", "a": {"good": CHOSEN, "bad": REJECTED}, "tools": ["x"]}
        for i in range(4)
    ]
    mapping = {"q": "prompt", "a.good": "chosen", "a.bad": "rejected", "tools": None}
    result = prepared(tmp_path, rows, columns=mapping)
    assert result.usable == {"train": 3, "validation": 1}
    assert result.pairs["train"][0].chosen == [GOOD]
    with pytest.raises(RecipeError, match="'qq', which no row has"):
        prepared(tmp_path, [numbered(i) for i in range(4)], columns={"qq": "system"})


def test_ignored_columns_duplicates_and_contradictions_are_counted(tmp_path: Path) -> None:
    rows = [numbered(i) | {"margin": 0.5} for i in range(6)]
    rows += [rows[0], rows[1] | {"chosen": REJECTED, "rejected": CHOSEN}]
    findings = prepared(tmp_path, rows).findings
    assert findings.ignored_columns == ["margin"]
    assert (findings.duplicates, findings.contradictions) == (1, 1)


def test_a_row_of_other_columns_is_named_with_those_before_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rows\.jsonl:5 has the columns 'prompt', 'response'"):
        prepared(tmp_path, [*map(numbered, range(4)), {"prompt": "x", "response": "y"}])


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  "], ids=str)
def test_if_instruction_or_input_is_missing_the_other_is_the_prompt(missing: Any) -> None:
    answers = {"chosen": CHOSEN, "rejected": REJECTED}
    for row in (
        {"instruction": missing, "input": PROMPT},
        {"instruction": PROMPT, "input": missing},
    ):
        assert parse({**row, **answers}).prompt == [USER]


def test_an_input_that_is_not_text_is_not_turned_into_a_string() -> None:
    row = {"instruction": "Add.", "input": ["2", "3"], "chosen": CHOSEN, "rejected": REJECTED}
    assert reason(row) == "not_text"


@pytest.mark.parametrize("system", [["Be brief."], {"role": "system", "content": "Be brief."}])
def test_a_row_with_a_system_column_that_is_not_text_is_dropped(system: Any) -> None:
    row = {"system": system, "question": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}
    assert reason(row) == "not_text"
