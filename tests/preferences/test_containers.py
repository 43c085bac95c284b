import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from datasets import Dataset, DatasetDict

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import read_rows
from rlhf_recipes.preferences.files import read_splits

ROWS: list[dict[str, Any]] = [
    {"prompt": "Café, please?", "chosen": "None", "rejected": "2024-01-01"},
    {"prompt": 'Say "a\nb"', "chosen": "007", "rejected": "null"},
]


def lines(rows: list[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.jsonl", content)
        archive.writestr("__MACOSX/._rows.jsonl", b"x")
    return file.getvalue()


def zstandard(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


TEXTS = {
    "rows.jsonl": lines(),
    "rows.ndjson": "\n" + lines(),
    "rows.JSONL": lines().replace("\n", "\r\n"),
    "lines.json": lines(),
    "array.json": json.dumps(ROWS),
    "array.jsonl": json.dumps(ROWS, indent=1),
    "data.json": json.dumps({"data": ROWS}),
    "version.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "pandas.json": json.dumps(
        {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}
    ),
    "rows.csv": table(","),
    "excel.csv": table(";"),
    "rows.tsv": table("\t"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(TEXTS[name].encode(encoding))
    assert [dict(row) for _, row in read_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", zstandard),
        ("zip", zipped),
    ],
)
def test_compressed_files_are_read_whatever_their_name_says(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    for name in (f"rows.jsonl.{suffix}", "renamed.jsonl"):
        (tmp_path / name).write_bytes(compress(lines().encode()))
        assert [row for _, row in read_rows(tmp_path / name)] == ROWS
    (tmp_path / "plain.jsonl.gz").write_text(lines(), encoding="utf-8")
    assert [row for _, row in read_rows(tmp_path / "plain.jsonl.gz")] == ROWS


def test_what_save_to_disk_writes_is_read(tmp_path: Path) -> None:
    saved = Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "two")
    train, test, _ = read_splits(str(tmp_path / "one"))
    assert [row.fields for row in train] == ROWS
    assert test is None
    train, test, _ = read_splits(str(tmp_path / "two"))
    assert [row.fields for row in train] == ROWS
    assert [row.location for row in test or ()] == ["test:1"]


def test_the_remedy_for_another_encoding_works(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines().encode("windows-1252"))
    with pytest.raises(RecipeError, match=r"byte 0xe9 is not UTF-8.*iconv -f WINDOWS-1252"):
        list(read_rows(path))
    path.write_text(path.read_bytes().decode("windows-1252"), encoding="utf-8")
    assert [row for _, row in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lines()[:-1] + ",\n", r"line 2: is not JSON \(Extra data.*exactly one JSON object"),
        (lines() + f'{{"prompt": {"9" * 5000}}}\n', r"line 3: holds a number that cannot be read"),
        (lines() + "[" * 100_000 + "\n", r"line 3: is nested too deeply"),
        (lines() + "[1]\n", r"line 3: holds '\[1\]', which is not a JSON object"),
        ('[{"a": 1}, 2]', r"row 2: holds '2', which is not a JSON object"),
        (json.dumps({"train": ROWS, "test": ROWS}), "holds several tables: train, test"),
        (json.dumps({"chosen": ["a"], "rejected": ["b", "c"]}), "chosen: 1, rejected: 2"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, content: str, found: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=found) as error:
        list(read_rows(path))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("prompt,chosen\na,b,c\n", "line 2: has 3 values, and the first line names 2 columns"),
        ("prompt,prompt\na,b\n", "columns of the same name"),
        ('prompt,chosen\n"a"b,c\n', "line 2: is not CSV"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=found):
        list(read_rows(path))


def test_an_archive_of_several_files_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.csv.zip", "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "x")
    with pytest.raises(RecipeError, match=r"contains a\.csv, b\.csv.*Unpack it"):
        list(read_rows(tmp_path / "rows.csv.zip"))


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines(), encoding="utf-8")
    return folder


def test_one_name_in_two_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "train.json")
    with pytest.raises(RecipeError, match=r"train\.json and train\.jsonl.*same rows twice"):
        read_splits(str(tmp_path))
    (tmp_path / "train.json").unlink()
    assert len(list(read_splits(str(tmp_path)).train)) == 2


def test_splits_of_two_names_are_not_merged(tmp_path: Path) -> None:
    folder = write(tmp_path / "h4", "data/train_sft.jsonl", "data/train_prefs.jsonl")
    with pytest.raises(RecipeError, match=r"could be `train`: train_prefs, train_sft") as error:
        read_splits(str(folder))
    assert "`dataset_train_split: train_prefs`" in str(error.value)
    splits = read_splits(str(folder), train_split="train_prefs")
    assert {row.location for row in splits.train} == {f"data/train_prefs.jsonl:{i}" for i in (1, 2)}
    assert splits.unread == ("data/train_sft.jsonl",)
    apart = write(tmp_path / "apart", "a/train_sft.jsonl", "b/train_prefs.jsonl")
    assert {row.source for row in read_splits(str(apart)).train} == {"a", "b"}


def test_numbered_files_are_one_split_and_other_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "train-1.jsonl", "train-2.jsonl", "more.jsonl")
    splits = read_splits(str(folder))
    assert len(list(splits.train)) == 4
    assert splits.unread == ("more.jsonl",)
    extra = write(tmp_path / "extra", "train.jsonl", "train_prompts.jsonl")
    splits = read_splits(str(extra))
    assert len(list(splits.train)) == 2
    assert splits.unread == ("train_prompts.jsonl",)


def test_files_lie_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c/train.jsonl", ".cache/huggingface/train.jsonl")
    assert [row.location for row in read_splits(str(tmp_path)).train] == [
        "a/b/c/train.jsonl:1",
        "a/b/c/train.jsonl:2",
    ]
