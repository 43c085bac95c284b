import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import read_json_lines
from rlhf_recipes.preferences.files import RawRow, read_splits

ROW = {"chosen": "a b", "rejected": "a c"}


def read(name: str, *more: str | None, **options: Any) -> tuple[list[RawRow], list[RawRow] | None]:
    splits = read_splits(name, *more, **options)
    return list(splits.train), None if splits.test is None else list(splits.test)


def write_rows(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({**ROW, "id": i}) + "\n" for i in range(count))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        Dataset.from_list([json.loads(line) for line in lines.splitlines()]).to_parquet(path)
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    train, test = read(str(write_rows(tmp_path / f"pairs{suffix}", 3)))
    assert test is None
    assert [row.fields for row in train] == [{**ROW, "id": i} for i in range(3)]
    assert {row.source for row in train} == {"pairs"}
    assert [row.location for row in train] == [f"pairs{suffix}:{i}" for i in (1, 2, 3)]


def test_sub_folders_are_sources(tmp_path: Path) -> None:
    write_rows(tmp_path / "harmless-base" / "train.jsonl.gz", 2)
    write_rows(tmp_path / "harmless-base" / "test.jsonl.gz", 1)
    write_rows(tmp_path / "helpful-base" / "train.jsonl.gz", 3)
    write_rows(tmp_path / "red-team" / "attempts.jsonl.gz", 5)  # in no split, so nobody's
    train, test = read(str(tmp_path))
    assert [row.source for row in train] == ["harmless-base"] * 2 + ["helpful-base"] * 3
    assert train[0].location == "harmless-base/train.jsonl.gz:1"
    assert test is not None
    assert [row.source for row in test] == ["harmless-base"]
    only, _ = read(str(tmp_path), config="helpful-base")
    assert len(only) == 3


@pytest.mark.parametrize("folder", ["data", "train", "."])
def test_a_folder_for_a_split_or_for_data_is_no_source(tmp_path: Path, folder: str) -> None:
    write_rows(tmp_path / "mine" / folder / "train-00000-of-00001.parquet", 2)
    train, _ = read(str(tmp_path / "mine"))
    assert {row.source for row in train} == {"mine"}


def test_validation_serves_where_there_is_no_test(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 2)
    write_rows(tmp_path / "my-validation.jsonl", 1)
    assert len(read(str(tmp_path))[1] or []) == 1
    write_rows(tmp_path / "test.jsonl", 3)
    assert len(read(str(tmp_path))[1] or []) == 3
    assert read(str(tmp_path), test_split=None)[1] is None


def test_a_split_is_found_by_its_own_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "train_prefs-00000-of-00001.parquet", 2)
    write_rows(tmp_path / "train_sft-00000-of-00001.parquet", 5)
    write_rows(tmp_path / "test_prefs-00000-of-00001.parquet", 1)
    train, test = read(str(tmp_path), None, "train_prefs", "test_prefs")
    assert len(train) == 2
    assert len(test or []) == 1


def test_files_that_name_no_split_are_the_training_data(tmp_path: Path) -> None:
    write_rows(tmp_path / "part1.jsonl", 2)
    write_rows(tmp_path / "contest.jsonl", 1)  # "test" inside another word
    train, test = read(str(tmp_path))
    assert len(train) == 3
    assert test is None


def test_a_missing_split_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 1)
    with pytest.raises(RecipeError, match=r"no split `tset`; it has: train\."):
        read(str(tmp_path), test_split="tset")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROW) + '\n\n{"chosen": "a\n')
    with pytest.raises(RecipeError, match=r"pairs\.jsonl, line 3: is not JSON"):
        list(read_json_lines(path))
    path.write_text("[1, 2]\n")
    with pytest.raises(RecipeError, match=r"line 1: holds '\[1, 2\]', which is not a JSON object"):
        list(read_json_lines(path))


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:200] + bytes(255 - byte for byte in content[200:260]) + content[260:]


@pytest.mark.parametrize("damage", [truncated, flipped])
def test_a_damaged_archive_is_an_error_of_one_screen(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = write_rows(tmp_path / "train.jsonl.gz", 500)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RecipeError, match=r"train\.jsonl\.gz") as error:
        read(str(path))
    assert len(str(error.value)) < 500


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.parquet", 20)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecipeError, match="cannot be read as Parquet"):
        read(str(path))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("no/such/folder", "does not exist"),
        ("missing.jsonl", "does not exist"),
        ("nobody/nothing", "cannot be opened as a dataset of the Hub"),
        ("notes.txt", "not a file that can be read"),
        ("empty", "holds no data"),
    ],
)
def test_data_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RecipeError, match=found):
        read(name)
