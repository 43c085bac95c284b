"""A dataset that a stage prepares itself gives what prepare_data.py would have written."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.collection import held_out_prompts
from rlhf_recipes.preferences import DataArguments, dataset_fingerprint, load_prepared
from rlhf_recipes.preferences.preparation import prepare, write_prepared
from rlhf_recipes.runs.checkpoints import last_checkpoint

ROWS = [
    {"prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": "No, never."}
    for i in range(20)
]
KINDS = ("file", "folder", "saved")


def write_lines(file: Path, rows) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_raw(kind: str, folder: Path) -> Path:
    """Write the rows as a file, a folder with train and test, or as `save_to_disk` does."""
    if kind == "file":
        return write_lines(folder / "pairs.jsonl", ROWS)
    if kind == "folder":
        write_lines(folder / "pairs" / "train.jsonl", ROWS[:16])
        write_lines(folder / "pairs" / "test.jsonl", ROWS[14:])
    else:
        splits = {"train": ROWS[:16], "test": ROWS[14:]}
        saved = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
        saved.save_to_disk(folder / "pairs")
    return folder / "pairs"


def prepare_to_files(raw: Path, output_dir: Path) -> Path:
    """Prepare with the default settings, as `make data` does."""
    arguments = DataArguments(str(raw), output_dir=str(output_dir))
    write_prepared(prepare(arguments), arguments)
    return output_dir / "data"


def start(root: Path, stage: str, raw: Path, out: Path, monkeypatch, *flags: str) -> None:
    """Run the script of a stage in this process with the recipe of recipes/tiny."""
    spec = importlib.util.spec_from_file_location(f"script_{stage}", root / f"recipes/{stage}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    argv = [stage, "--config", str(root / f"recipes/tiny/{stage}.yaml"), *flags]
    argv += ["--output_dir", str(out), "--dataset_name", str(raw), "--use_cpu"]
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", argv)
    script.main()


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_split_and_fingerprint_are_those_of_prepare_data(kind, tmp_path, capsys):
    raw = write_raw(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    direct = load_prepared(raw)
    fingerprint = dataset_fingerprint(raw)
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert printed.count("was prepared on the fly") == 1
    assert "format: TRL, explicit prompt" in printed and "--- rejected" in printed
    assert ("- prompt_in_train" in printed) == (kind != "file")

    data = prepare_to_files(raw, tmp_path / "out")
    assert fingerprint == dataset_fingerprint(data)
    assert fingerprint == json.loads((data / "run.json").read_text())["dataset_fingerprint"]
    written = load_prepared(data)
    for split in ("train", "validation"):
        assert len(direct[split]) and direct[split].to_list() == written[split].to_list()
        assert direct[split].features == written[split].features
    first = load_prepared(raw, max_train_samples=3, max_eval_samples=1)
    assert first["train"].to_list() == direct["train"].to_list()[:3]
    assert len(first["validation"]) == 1
    assert len(load_prepared(raw, max_train_samples=1000)["train"]) == len(direct["train"])


def test_the_fingerprint_is_of_the_pairs_and_not_of_their_path(tmp_path):
    raw = write_raw("file", tmp_path)
    before = dataset_fingerprint(raw)
    moved = tmp_path / "elsewhere" / raw.name
    moved.parent.mkdir()
    raw.rename(moved)
    assert dataset_fingerprint(moved) == before
    write_lines(moved, ROWS[1:])
    assert dataset_fingerprint(moved) != before


def test_only_the_first_process_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    load_prepared(write_raw("file", tmp_path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["outputs/data", "judge/data", "no/such/folder", "no.jsonl"])
def test_a_missing_dataset_is_refused_with_what_to_do(name, tmp_path, monkeypatch):
    """A missing data/ is not looked for on the Hub: anybody may own a dataset of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="is not a folder of prepared data") as refused:
        load_prepared(name)
    assert f"`dataset_name` is {name}" in str(refused.value) and "`make data`" in str(refused.value)
    assert ("on the fly" in str(refused.value)) == (not name.endswith("/data"))


def test_a_dataset_that_the_defaults_do_not_fit_is_refused_with_the_reason(tmp_path):
    raw = write_lines(tmp_path / "pairs.jsonl", [{"good": "a", "bad": "b"}] * 4)
    with pytest.raises(RecipeError, match=r"prepare_data\.py(?s:.)*on the fly:\n(?s:.)*columns"):
        load_prepared(raw)


@pytest.mark.parametrize("interrupted", ["while it was renamed", "by make"])
def test_data_that_was_not_finished_is_not_prepared_a_second_time(interrupted, tmp_path):
    """Its files may be of two preparations, so it is not taken for raw data."""
    data = prepare_to_files(write_raw("file", tmp_path), tmp_path / "out")
    if interrupted == "by make":  # it removes the target
        (data / "run.json").unlink()
    else:
        (data / "run.json").rename(data / ".staged.run.json")
        (tmp_path / "out" / "dataset_stats.json").unlink()
    with pytest.raises(RecipeError, match="Run `make data`"):
        load_prepared(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_prepares_its_data_itself(kind, root, tmp_path, monkeypatch, capsys):
    raw = write_raw(kind, tmp_path)
    start(root, "dpo", raw, tmp_path / "planned", monkeypatch, "--plan")
    assert not (tmp_path / "planned").exists()
    assert "was prepared on the fly" in capsys.readouterr().out
    start(root, "dpo", raw, tmp_path / "run", monkeypatch, "--max_steps", "1")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dataset_fingerprint"] == dataset_fingerprint(raw)
    assert f"| data | {raw.name} |" in (tmp_path / "run" / "README.md").read_text()

    data = prepare_to_files(raw, tmp_path / "out")
    start(root, "dpo", data, tmp_path / "stock", monkeypatch, "--max_steps", "1")
    stock = json.loads((tmp_path / "stock" / "run.json").read_text())
    assert stock["dataset_fingerprint"] == record["dataset_fingerprint"]
    weights, expected = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "stock")
    )
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_holds_out_the_same_prompts(kind, tmp_path):
    raw = write_raw(kind, tmp_path)
    data = prepare_to_files(raw, tmp_path / "out")
    direct, written = (
        held_out_prompts(EvaluationArguments(dataset_name=str(name))) for name in (raw, data)
    )
    assert direct == written and len(direct) >= 2
    assert not set(direct) & set(load_prepared(raw)["train"]["prompt"])


def test_a_killed_run_goes_on_with_the_same_pairs_only(root, tmp_path, monkeypatch):
    raw, out = write_raw("file", tmp_path), tmp_path / "run"
    flags = ("--max_steps", "2", "--save_steps", "1")
    start(root, "dpo", raw, out, monkeypatch, *flags)
    whole = load_file(out / "adapter_model.safetensors")
    (out / "run.json").unlink()
    shutil.rmtree(out / "checkpoint-2")
    assert last_checkpoint(out) == str(out / "checkpoint-1")

    changed = write_lines(tmp_path / "changed" / raw.name, ROWS[1:])
    with pytest.raises(RecipeError, match=r"`dataset_name`: what .* holds has changed since"):
        start(root, "dpo", changed, out, monkeypatch, *flags)

    moved = tmp_path / "moved" / raw.name
    moved.parent.mkdir()
    os.replace(raw, moved)
    start(root, "dpo", moved, out, monkeypatch, *flags)
    weights = load_file(out / "adapter_model.safetensors")
    assert all(weights[name].equal(whole[name]) for name in whole)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
