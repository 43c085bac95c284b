"""prepare_data.py, killed between any two of its changes to files, continues when run again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import prepare, write_prepared


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arguments_for(out: Path, word: str, judge: bool) -> DataArguments:
    rows = [
        {"prompt": f"{word} {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)
    ]
    source = Path(f"{word}.jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fraction = 0.5 if judge else None
    return DataArguments(str(source), judge_fraction=fraction, output_dir=str(out), overwrite=True)


def prepared(out: Path, word: str, judge: bool) -> dict[str, object]:
    arguments = arguments_for(out, word, judge)
    write_prepared(prepare(arguments), arguments)
    return contents(out)


def contents(out: Path) -> dict[str, object]:
    """Every file by name; of run.json only what does not depend on the time or the folder."""
    files: dict[str, object] = {}
    for file in (file for file in out.rglob("*") if file.is_file()):
        name = str(file.relative_to(out))
        files[name] = file.read_bytes()
        if file.name == "run.json":
            record = json.loads(file.read_text())
            files[name] = f"{record['dataset_fingerprint']} {record['sizes']}"
    return files


@pytest.fixture
def left_by_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, DataArguments], list[Path]]:
    """Copies of what a run leaves if it is killed before each of its changes."""

    def run(out: Path, arguments: DataArguments) -> list[Path]:
        copies: list[Path] = []

        def copying(change: Callable[..., Any]) -> Callable[..., Any]:
            def copy_then_change(path: Path, *rest: Any, **options: Any) -> Any:
                if path.is_relative_to(out):
                    copy = tmp_path / f"killed_{len(copies)}" / "out"
                    shutil.copytree(out, copy) if out.exists() else copy.mkdir(parents=True)
                    copies.append(copy)
                return change(path, *rest, **options)

            return copy_then_change

        pairs = prepare(arguments)
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "write_bytes", "rmdir"):
                patch.setattr(Path, name, copying(getattr(Path, name)))
            write_prepared(pairs, arguments)
        return copies

    return run


def in_place(files: dict[str, object]) -> dict[str, object]:
    """The files under their own names."""
    return {name: value for name, value in files.items() if ".staged." not in name}


@pytest.mark.parametrize(
    ("judge_before", "judge", "states"),
    [(None, False, 6), (True, True, 11), (True, False, 10)],
    ids=["new", "other data for policy and judge", "no judge any more"],
)
def test_a_killed_run_continues_and_writes_the_same_bytes(
    tmp_path: Path,
    left_by_kills: Callable[[Path, DataArguments], list[Path]],
    judge_before: bool | None,
    judge: bool,
    states: int,
) -> None:
    out = tmp_path / "out"
    if judge_before is not None:
        prepared(out, "old", judge_before)
    (out / "judge").mkdir(parents=True, exist_ok=True)
    for name in ("notes.txt", "judge/notes.txt"):
        (out / name).write_text("not of this script")
    old = contents(out)
    copies = left_by_kills(out, arguments_for(out, "new", judge))
    new = contents(out)
    assert new == in_place(new)
    assert old.items() & new.items() == {(n, old[n]) for n in ("notes.txt", "judge/notes.txt")}

    different = {}
    for copy in copies:
        files = contents(copy)
        complete = "data/.staged.run.json" in files
        if not complete or "data/run.json" in files:  # the old data are whole
            assert in_place(files) == old
        different[complete, *sorted(in_place(files).items())] = copy
    assert len(different) == states
    for copy in different.values():
        assert prepared(copy, "new", judge) == new


def test_data_whose_run_json_was_deleted_are_prepared_again(tmp_path: Path) -> None:
    """make deletes the target of an interrupted command."""
    out = tmp_path / "out"
    whole = prepared(out, "new", judge=True)
    (out / "data" / "run.json").unlink()
    assert prepared(out, "new", judge=True) == whole
    (out / "data" / "run.json").unlink()
    (out / "data" / "validation.jsonl").write_text("changed by hand")
    with pytest.raises(RecipeError, match=r"data/validation\.jsonl, not written by this script"):
        prepared(out, "new", judge=True)


@pytest.mark.parametrize(
    "name",
    [
        "judge/data/train.jsonl",
        "data/validation.jsonl",
        "dataset_stats.json",
        "dataset_distribution.png",
    ],
)
def test_foreign_files_are_never_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("{}")
    with pytest.raises(RecipeError, match=f"holds {re.escape(name)}, not written by this script"):
        prepared(out, "new", judge=True)
    assert contents(out) == {name: b"{}"}


def test_data_are_not_prepared_from_themselves(tmp_path: Path) -> None:
    """Killed between two of its files, the run would go on from a mixture."""
    out = tmp_path / "out"
    whole = prepared(out, "new", judge=False)
    arguments = DataArguments(str(out / "data"), output_dir=str(out), overwrite=True)
    with pytest.raises(RecipeError, match="would replace while it is read"):
        write_prepared(prepare(arguments), arguments)
    assert contents(out) == whole
