import json
from pathlib import Path
from typing import Any

from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import dataset_statistics, prepare
from rlhf_recipes.preferences.summary import summary


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q {i}", "chosen": f"yes {i} of course", "rejected": f"no {i}"}
        for i in range(count)
    ]


def arguments_for(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> DataArguments:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(str(path), **keys)


def test_a_run_shows_one_pair_with_its_chat_template(tmp_path: Path) -> None:
    rows = [
        {"question": f"Is {i} \x1b[31mred?", "chosen": "Yes", "rejected": "No", "margin": 1}
        for i in range(4)
    ]
    arguments = arguments_for(tmp_path, rows, model_name_or_path="demo")
    prepared = prepare(arguments)
    text = summary(prepared)
    assert "--- prompt\n<|im_start|>user\nIs " in text
    assert "red?<|im_end|>\n<|im_start|>assistant\n" in text
    assert "--- chosen\nYes<|im_end|>" in text
    assert "\\x1b[31m" in text and "\x1b" not in text
    assert "ignored columns: margin\n" in text
    assert "format: Orca, SPIN: question (4 rows)" in text
    statistics = dataset_statistics(prepared, arguments)
    assert statistics["ignored_columns"] == ["margin"]
    assert statistics["duplicates"] == statistics["contradictions"] == 0


def test_dropping_most_rows_for_one_reason_is_a_warning(tmp_path: Path) -> None:
    rows = [row | {"rejected": row["chosen"]} for row in rows_of(6)] + rows_of(5)
    text = summary(prepare(arguments_for(tmp_path, rows)))
    assert "Warning: 6 of 11 rows were dropped for one reason, identical" in text
    assert "Warning" not in summary(prepare(arguments_for(tmp_path, rows[1:])))


def test_a_cut_prompt_is_a_warning(tmp_path: Path) -> None:
    rows = [{"chosen": f"The sky {i} is blue", "rejected": f"The sky {i} is red"} for i in range(4)]
    text = summary(prepare(arguments_for(tmp_path, rows)))
    assert "Warning: the data has no prompt" in text
    assert "--- chosen\n blue" in text


def test_a_sample_measures_no_more_than_it_needs(tmp_path: Path) -> None:
    rows = [
        row | {"chosen": "long " * (50 if i % 4 == 0 else 3)} for i, row in enumerate(rows_of(2000))
    ]
    arguments = arguments_for(tmp_path, rows, max_length=20, max_train_samples=100)
    prepared = prepare(arguments)
    assert len(prepared.pairs["train"]) == 100
    dropped = prepared.dropped["too_long"].count["train"]
    assert 40 <= dropped <= 90  # a quarter of the 256 that were measured
    assert prepared.not_measured["train"] == 1800 - 256
    assert "- not measured" in summary(prepared)
    whole = prepare(arguments_for(tmp_path, rows, max_length=20))
    assert sum(whole.usable.values()) == 1500
    assert set(whole.not_measured.values()) == {0}
