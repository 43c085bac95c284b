"""The rows of a preference dataset as they stand on the Hub, in a folder or in a file.

What the rows mean is read in `preferences.shapes`.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from rlhf_recipes.errors import RecipeError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

# The words by which the Hub tells splits apart in file and folder names.
_SPLIT_WORDS = {
    "train": "train|training",
    "test": "test|testing|eval|evaluation",
    "validation": "validation|valid|val|dev",
}


class RawRow(NamedTuple):
    """A row as it was found, the part of the dataset it belongs to, and where it stands."""

    source: str
    place: str
    fields: Mapping[str, object]


class _Part(NamedTuple):
    source: str
    data: Path | Iterable[Mapping[str, object]]  # a file, or the rows themselves
    label: str


def read_splits(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = "test",
) -> tuple[list[RawRow], list[RawRow] | None]:
    """The training rows and, where the dataset has them, the held-out rows.

    If there is no split called `test`, one called `validation` serves.

    Args:
        name: Hub id, folder, or file.
        config: Configuration on the Hub, or sub-folder of a folder.
        test_split: None to leave held-out rows alone even where there are some.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        splits = _folder_splits(path / config if config else path, {train_split, test_split})
    elif path.is_file():
        splits = {train_split: [_Part(_stem(path), path, path.name)]}
    else:
        splits = _hub_splits(name, config)
    if test_split == "test" and "test" not in splits:
        test_split = "validation" if "validation" in splits else None
    for wanted in (train_split, test_split):
        if wanted is not None and wanted not in splits:
            raise RecipeError(
                f"`{name}` has no split `{wanted}`; it has: {', '.join(splits) or 'none'}. "
                "Set `dataset_train_split` and `dataset_test_split` to splits that are there."
            )
    return _rows(splits[train_split]), None if test_split is None else _rows(splits[test_split])


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line numbers and objects of a .jsonl or .jsonl.gz file; blank lines are passed over."""
    number = 0
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise RecipeError(
                        f"{path}, line {number}: holds {line.strip()[:40]!r}, which is not a JSON "
                        "object. Write one object with the columns of a row on each line."
                    )
                yield number, row
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{path}, line {number}: is not JSON ({error.msg}, column {error.colno}). "
            "Repair or remove that line."
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(
            f"{path} cannot be read after line {number} ({reason}). "
            "Check that the file is complete, and fetch or write it again."
        ) from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _rows(parts: list[_Part]) -> list[RawRow]:
    return [RawRow(part.source, place, row) for part in parts for place, row in _part_rows(part)]


def _part_rows(part: _Part) -> Iterator[tuple[str, Mapping[str, object]]]:
    rows: Iterator[tuple[int, Mapping[str, object]]]
    if not isinstance(part.data, Path):
        rows = enumerate(part.data, start=1)
    elif part.data.suffix == ".parquet":
        rows = enumerate(_read_parquet(part.data), start=1)
    elif part.data.name.endswith(SUFFIXES):
        rows = read_json_lines(part.data)
    else:
        raise RecipeError(
            f"{part.data} is not a file that can be read as preference data. "
            f"Give a file that ends in {', '.join(SUFFIXES)}, a folder of them, or a Hub id."
        )
    for number, row in rows:
        yield f"{part.label}:{number}", row


def _read_parquet(path: Path) -> list[dict[str, object]]:
    # Imported where it is used, like `datasets` below: it would slow down every script's start.
    import pyarrow  # type: ignore[import-untyped]  # it ships no py.typed
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise RecipeError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}). "
            "Check that the file is complete, and fetch or write it again."
        ) from error


def _folder_splits(folder: Path, wanted: set[str | None]) -> dict[str, list[_Part]]:
    """Files of a folder and of its sub-folders by split; a sub-folder's name is their source."""
    names = [f.relative_to(folder) for f in (*folder.glob("*"), *folder.glob("*/*"))]
    files = [folder / name for name in sorted(names) if _is_data(folder, name)]
    if not files:
        raise RecipeError(
            f"{folder} holds no data: there is no file ending in {', '.join(SUFFIXES)} in it or "
            "in its sub-folders. Give the folder that holds the files."
        )
    splits: dict[str, list[_Part]] = {}
    for file in files:
        parent = "" if file.parent == folder else file.parent.name
        own = parent in ("", "data") or _split_word(parent) is not None
        source = folder.resolve().name if own else parent
        stem = re.sub(r"-\d+-of-\d+$", "", _stem(file))
        split = stem if stem in wanted else _split_word(stem) or _split_word(parent) or ""
        splits.setdefault(split, []).append(_Part(source, file, str(file.relative_to(folder))))
    # Files that name no split are the training data, unless other files claim to be that.
    unnamed = splits.pop("", [])
    return splits if "train" in splits or not unnamed else {"train": unnamed} | splits


def _is_data(folder: Path, name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return name.name.endswith(SUFFIXES) and not hidden and (folder / name).is_file()


def _split_word(name: str) -> str | None:
    for split, words in _SPLIT_WORDS.items():
        if re.search(rf"(?<![a-z])({words})(?![a-z])", name.lower()):
            return split
    return None


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), path.stem)


def _hub_splits(name: str, config: str | None) -> dict[str, list[_Part]]:
    if name.startswith(("/", ".", "~")) or name.endswith(SUFFIXES) or name.count("/") > 1:
        raise RecipeError(
            f"`dataset_name` is {name}, which does not exist. "
            f"Give a folder, a file ending in {', '.join(SUFFIXES)}, or a Hub id."
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        splits = load_dataset(name, config)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"`dataset_name` is `{name}`: there is no such folder or file here, and it cannot be "
            f"opened as a dataset of the Hub ({reason}). Check its spelling, its `dataset_config` "
            "and the network, or download it and give the folder."
        ) from error
    source = name.rsplit("/", 1)[-1]
    return {split: [_Part(source, data, split)] for split, data in splits.items()}
