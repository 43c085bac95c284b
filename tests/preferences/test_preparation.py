import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences import DataArguments, load_prepared
from rlhf_recipes.preferences.preparation import (
    Prepared,
    check_writable,
    dataset_statistics,
    prepare,
    size_table,
    write_prepared,
)
from rlhf_recipes.preferences.shapes import prompt_key

ROOT = Path(__file__).parents[2]
HH = ROOT / "../shared/data/hh-rlhf"

needs_hh = pytest.mark.skipif(
    not HH.is_dir(), reason=f"needs raw HH-RLHF files in {HH}, which are not part of the project"
)


def rows_of(count: int, word: str = "q") -> list[dict[str, Any]]:
    return [
        {"prompt": f"{word} {i}", "chosen": f"yes {i} of course", "rejected": f"no {i}"}
        for i in range(count)
    ]


def dataset(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def counts(prepared: Prepared) -> dict[str, dict[str, int]]:
    return {
        reason: {split: count for split, count in dropped.count.items() if count}
        for reason, dropped in prepared.dropped.items()
        if any(dropped.count.values())
    }


def test_every_row_is_written_or_dropped_for_a_counted_reason(tmp_path: Path) -> None:
    rows = rows_of(10)
    rows[0]["chosen"] = ""
    rows[1]["chosen"] = rows[1]["rejected"]
    rows[2]["chosen"] = "long " * 50
    held_out = [*rows_of(4, "other"), *rows_of(10)[5:8]]
    source = dataset(tmp_path / "raw", train=rows, test=held_out)
    prepared = prepare(DataArguments(str(source), max_length=20, max_train_samples=5))
    assert counts(prepared) == {
        "empty": {"train": 1},
        "identical": {"train": 1},
        "too_long": {"train": 1},
        "prompt_in_train": {"validation": 3},
    }
    assert prepared.rows == {"train": 10, "validation": 7}
    assert prepared.usable == {"train": 7, "validation": 4}
    assert {split: len(pairs) for split, pairs in prepared.pairs.items()} == {
        "train": 5,
        "validation": 4,
    }
    assert prepared.dropped["too_long"].examples[0]["row"] == "train.jsonl:3"
    assert len(prepared.dropped["too_long"].examples[0]["chosen"]) <= 61


def test_max_length_is_a_limit_that_may_be_reached(tmp_path: Path) -> None:
    """The prompt `q 0` has 2 words and the chosen completion `yes 0 of course` 4: 6 in all."""
    source = dataset(tmp_path / "raw", train=rows_of(6))
    assert prepare(DataArguments(str(source), max_length=6)).usable == {
        "train": 5,
        "validation": 1,
    }
    with pytest.raises(RecipeError, match="too_long: 6"):
        prepare(DataArguments(str(source), max_length=5))


def test_training_prompts_are_held_out_if_there_is_no_test_split(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=[*rows_of(40), *rows_of(10)])
    prepared = prepare(DataArguments(str(source), validation_fraction=0.25))
    keys = [{prompt_key(pair.prompt) for pair in pairs} for pairs in prepared.pairs.values()]
    assert prepared.usable == {"train": 38, "validation": 12}  # a quarter of 50 pairs
    assert not keys[0] & keys[1]


def test_prepared_data_reads_back_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=rows_of(30))
    records = []
    for name, seed in [("one", 1), ("again", 1), ("two", 2)]:
        arguments = DataArguments(str(source), seed=seed, output_dir=str(tmp_path / name))
        write_prepared(prepare(arguments), arguments)
        records.append(json.loads((tmp_path / name / "data" / "run.json").read_text()))
    assert records[0]["dataset_fingerprint"] == records[1]["dataset_fingerprint"]
    assert records[0]["dataset_fingerprint"] != records[2]["dataset_fingerprint"]
    data = tmp_path / "one" / "data"
    content = (data / "train.jsonl").read_bytes() + (data / "validation.jsonl").read_bytes()
    assert records[0]["dataset_fingerprint"] == hashlib.sha256(content).hexdigest()
    assert records[0]["sizes"] == {"train": 27, "validation": 3}
    assert records[0]["recipe"]["dataset_name"] == str(source)
    loaded = load_prepared(data, max_train_samples=4)
    assert loaded["train"].num_rows == 4
    assert loaded["validation"].num_rows == 3
    assert set(loaded["train"].column_names) == {"prompt", "chosen", "rejected", "source", "turns"}


def test_a_judge_shares_no_prompts_with_the_training_data(tmp_path: Path) -> None:
    """Half of the training prompts with all their pairs; validation is the same for both."""
    source = dataset(tmp_path / "raw", train=[*rows_of(40), *rows_of(40)], test=rows_of(6, "t"))
    arguments = DataArguments(
        str(source), judge_fraction=0.5, output_dir=str(tmp_path), overwrite=True
    )
    prepared = prepare(arguments)
    write_prepared(prepared, arguments)
    data, judge = (load_prepared(tmp_path / name) for name in ("data", "judge/data"))
    assert len(set(data["train"]["prompt"])) == len(set(judge["train"]["prompt"])) == 20
    assert len(data["train"]) == len(judge["train"]) == 40
    assert not set(data["train"]["prompt"]) & set(judge["train"]["prompt"])
    assert data["validation"].to_list() == judge["validation"].to_list()
    fingerprints = {
        json.loads((tmp_path / name / "run.json").read_text())["dataset_fingerprint"]
        for name in ("data", "judge/data")
    }
    assert len(fingerprints) == 2
    assert "for a judge                       40           0" in size_table(prepared)
    without = DataArguments(str(source), output_dir=str(tmp_path), overwrite=True)
    write_prepared(prepare(without), without)
    with pytest.raises(RecipeError, match="not a folder of prepared data"):
        load_prepared(tmp_path / "judge" / "data")


def test_finished_data_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=rows_of(10))
    arguments = DataArguments(str(source), output_dir=str(tmp_path))
    check_writable(arguments)
    write_prepared(prepare(arguments), arguments)
    with pytest.raises(RecipeError, match="--overwrite"):
        check_writable(arguments)
    check_writable(DataArguments(str(source), output_dir=str(tmp_path), overwrite=True))


def test_raw_data_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    """`output_dir: .` next to a folder data/ of raw files would overwrite them."""
    source = dataset(tmp_path / "data", train=rows_of(10))
    before = (source / "train.jsonl").read_bytes()
    arguments = DataArguments(str(source), output_dir=str(tmp_path), overwrite=True)
    with pytest.raises(RecipeError, match=r"holds data/train\.jsonl, not written by this script"):
        write_prepared(prepare(arguments), arguments)
    assert (source / "train.jsonl").read_bytes() == before


def test_finished_data_survives_a_failed_replacement(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=rows_of(10))
    arguments = DataArguments(str(source), output_dir=str(tmp_path / "out"), overwrite=True)
    write_prepared(prepare(arguments), arguments)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "data",
        "dataset_stats.json",
        "dataset_distribution.png",
    }
    before = contents(tmp_path / "out")
    (tmp_path / "out" / ".staged.dataset_stats.json").mkdir()  # so that writing fails half way
    with pytest.raises(RecipeError, match="cannot be written"):
        write_prepared(prepare(arguments), arguments)
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / ".staged.dataset_stats.json").rmdir()
    (tmp_path / "out" / "dataset_distribution.png").unlink()
    (tmp_path / "out" / "dataset_distribution.png").mkdir()
    with pytest.raises(RecipeError, match=r"holds dataset_distribution\.png, not written"):
        write_prepared(prepare(arguments), arguments)


def test_a_test_split_with_only_training_prompts_is_refused(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=rows_of(10), test=rows_of(4, "Q "))
    with pytest.raises(
        RecipeError, match=r"no pairs for validation.*\n- prompt_in_train: 4 "
    ) as error:
        prepare(DataArguments(str(source)))
    assert "`dataset_test_split` to null" in str(error.value)


def test_too_few_prompts_for_a_judge_are_refused(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=rows_of(2))
    with pytest.raises(RecipeError, match="leaves no pairs for a judge"):
        prepare(DataArguments(str(source), judge_fraction=0.5))


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=[{"question": "Hi", "answer": "Ho"}])
    with pytest.raises(
        RecipeError, match=r"'question', 'answer', which.* needs 'chosen' and 'rejected'"
    ):
        prepare(DataArguments(str(source)))


def test_data_without_a_usable_pair_is_refused_with_reasons_and_counts(tmp_path: Path) -> None:
    rows = [row | {"rejected": row["chosen"]} for row in rows_of(5)]
    source = dataset(tmp_path / "raw", train=[*rows, {"chosen": "", "rejected": ""}])
    with pytest.raises(RecipeError, match=r"no pairs for train and validation") as error:
        prepare(DataArguments(str(source)))
    assert "- identical: 5" in str(error.value)
    assert "- empty: 1" in str(error.value)
    empty = dataset(tmp_path / "empty", train=[])
    with pytest.raises(RecipeError, match="too few rows"):
        prepare(DataArguments(str(empty)))


def test_text_and_conversations_in_one_dataset_are_an_error(tmp_path: Path) -> None:
    chat = [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]
    rows = [*rows_of(3), {"prompt": "Hi", "chosen": chat[0], "rejected": chat[1]}]
    source = dataset(tmp_path / "raw", train=rows)
    with pytest.raises(RecipeError, match=r"plain text \(3 rows.* conversations \(1 rows"):
        prepare(DataArguments(str(source)))


@needs_hh
def test_real_hh_rows_are_counted_by_reason() -> None:
    """Counted by hand: 4 empty completions, and 5 rows with two consecutive assistant turns."""
    prepared = prepare(DataArguments(str(HH)))
    assert prepared.rows == {"train": 1500, "validation": 300}
    assert counts(prepared) == {
        "empty": {"train": 4},
        "broken_roles": {"train": 4, "validation": 1},
        "prompt_in_train": {"validation": 24},
    }
    assert prepared.usable == {"train": 1492, "validation": 275}
    assert {pair.source for pair in prepared.pairs["train"]} == {"hh-rlhf"}
    assert "broken_roles" in size_table(prepared)


@needs_hh
@pytest.mark.parametrize("test_split", ["test", None])
def test_real_hh_conversations_share_no_first_turn_across_splits(test_split: str | None) -> None:
    arguments = DataArguments(str(HH), dataset_test_split=test_split, judge_fraction=0.5)
    prepared = prepare(arguments)
    parts = {**prepared.pairs, "judge": prepared.judge}
    turns = {
        part: {" ".join(str(pair.prompt[0]["content"]).lower().split()) for pair in pairs}
        for part, pairs in parts.items()
    }
    assert min(map(len, turns.values())) > 100
    assert not turns["train"] & turns["validation"]
    assert not turns["judge"] & (turns["train"] | turns["validation"])
    first_turns = dataset_statistics(prepared, arguments)["first_turns"]
    assert first_turns == {
        "different": {part: len(keys) for part, keys in turns.items()},
        "shared": dict.fromkeys(
            ("train and validation", "train and judge", "validation and judge"), 0
        ),
    }
    assert "- in both                          0           0" in size_table(prepared)


@needs_hh
def test_the_turns_of_real_hh_rows_are_balanced() -> None:
    arguments = DataArguments(str(HH), dataset_test_split=None, max_train_samples=300)
    prepared = prepare(arguments)
    turns = {split: Counter(p.turns for p in pairs) for split, pairs in prepared.pairs.items()}
    for count in (1, 2, 3, 4):
        train = turns["train"][count] / turns["train"].total()
        validation = turns["validation"][count] / turns["validation"].total()
        assert train == pytest.approx(validation, abs=0.03)
    assert json.dumps(dataset_statistics(prepared, arguments), allow_nan=False)


def prepare_data(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "prepare_data.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_writes_plans_and_refuses(tmp_path: Path) -> None:
    source = dataset(tmp_path / "raw", train=rows_of(20))
    flags = ("--dataset_name", str(source), "--output_dir", str(tmp_path / "out"))
    planned = prepare_data(*flags, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "usable" in planned.stdout
    assert not (tmp_path / "out").exists()

    written = prepare_data(*flags)
    assert written.returncode == 0, written.stderr
    statistics = json.loads((tmp_path / "out" / "dataset_stats.json").read_text())
    assert statistics["sizes"]["train"] == {
        "rows": 20,
        "usable": 18,
        "written": 18,
        "not_measured": 0,
    }
    assert (tmp_path / "out" / "dataset_distribution.png").stat().st_size > 10_000

    before = (tmp_path / "out" / "data" / "run.json").read_text()
    refused = prepare_data(*flags)
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr
    broken = prepare_data("--dataset_name", "nowhere.jsonl", *flags[2:], "--overwrite")
    assert broken.returncode == 2
    assert (tmp_path / "out" / "data" / "run.json").read_text() == before
