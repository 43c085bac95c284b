"""Find the splits of a preference dataset on the Hub, in a folder or in a file.

`containers` reads the rows of one file, and `formats` interprets them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import READABLE, data_suffix, read_rows

# The keywords by which `datasets` recognizes splits in the names of files and folders.
_SPLIT_WORDS = {
    "train": "train|training",
    "test": "test|testing|eval|evaluation",
    "validation": "validation|valid|val|dev",
}
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class RawRow(NamedTuple):
    """An uninterpreted row of a dataset.

    `source` names the subset it belongs to (a subfolder, or the dataset itself), `location` its
    file and line.
    """

    source: str
    location: str
    fields: Mapping[str, object]


class Splits(NamedTuple):
    """Training rows, test rows if the dataset has them, and the files that are not read."""

    train: Iterable[RawRow]
    test: Iterable[RawRow] | None
    unread: tuple[str, ...] = ()


class _Shard(NamedTuple):
    source: str
    data: Path | Iterable[Mapping[str, object]]  # a file, or its rows
    label: str


def read_splits(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = "test",
) -> Splits:
    """Open the training rows and, if the dataset has them, the test rows.

    If `test_split` is `test` and there is none, `validation` is used. Rows are read lazily.

    Args:
        name: Hub id, folder, or file.
        config: Configuration on the Hub, or subfolder of a folder.
        test_split: None to open no test rows even if the dataset has some.

    Raises RecipeError if the dataset or a split does not exist, or if the names of the files leave
    open which of them is a split.
    """
    path = Path(name).expanduser()
    unread: list[str] = []
    if path.is_dir():
        folder = path / config if config else path
        splits = _saved_splits(folder) or _folder_splits(folder, {train_split, test_split}, unread)
    elif path.is_file():
        _check_readable(path)
        splits = {train_split: [_Shard(_stem(path), path, path.name)]}
    else:
        splits = _hub_splits(name, config)
    if test_split == "test" and "test" not in splits:
        test_split = "validation" if "validation" in splits else None
    for split in (train_split, test_split):
        if split is not None and split not in splits:
            raise RecipeError(
                f"`{name}` has no split `{split}`; it has: {', '.join(splits) or 'none'}. "
                "Set `dataset_train_split` and `dataset_test_split` to splits that it has."
            )
    unread += [
        shard.label
        for split, shards in splits.items()
        if split not in (train_split, test_split)
        for shard in shards
    ]
    test = None if test_split is None else _rows(splits[test_split])
    return Splits(_rows(splits[train_split]), test, tuple(unread))


def _rows(shards: list[_Shard]) -> Iterator[RawRow]:
    for shard in shards:
        rows: Iterable[tuple[int, Mapping[str, object]]]
        rows = read_rows(shard.data) if isinstance(shard.data, Path) else enumerate(shard.data, 1)
        for number, fields in rows:
            yield RawRow(shard.source, f"{shard.label}:{number}", fields)


def _check_readable(path: Path) -> None:
    if not data_suffix(path.name):
        raise RecipeError(
            f"{path} is not a file that can be read as preference data. "
            f"Give a file that ends in {READABLE}, a folder of them, or a Hub id."
        )


def _saved_splits(folder: Path) -> dict[str, list[_Shard]]:
    """Return the splits that `datasets` saved with `save_to_disk`; a single dataset is `train`."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return {}
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"{folder} cannot be read as a dataset saved with `save_to_disk` ({reason}). "
            "Check that the folder is complete, and copy or save it again."
        ) from error
    source = folder.resolve().name
    splits = {"train": saved} if isinstance(saved, Dataset) else saved
    return {split: [_Shard(source, data, split)] for split, data in splits.items()}


def _folder_splits(
    folder: Path, wanted: set[str | None], unread: list[str]
) -> dict[str, list[_Shard]]:
    """Return the files of a folder, at any depth, by split; the subfolder is their source."""
    names = [f.relative_to(folder) for f in folder.rglob("*")]
    files = [folder / name for name in sorted(names) if _is_data(folder, name)]
    if not files:
        entries = sorted({str(name.parts[0]) for name in names})[:8]
        raise RecipeError(
            f"{folder} holds no data: neither it nor its subfolders have a file ending in "
            f"{READABLE}. It holds: {', '.join(entries) or 'nothing'}. "
            "Give the folder that holds the files."
        )
    _check_written_once(folder, files)
    splits: dict[str, dict[tuple[str, str], list[_Shard]]] = {}
    for file in files:
        parent = "" if file.parent == folder else file.parent.name
        no_source = parent in ("", "data") or _split_word(parent) is not None
        source = folder.resolve().name if no_source else parent
        stem = re.sub(r"-\d+-of-\d+$", "", _stem(file))
        split = stem if stem in wanted else _split_word(stem) or _split_word(parent) or ""
        shard = _Shard(source, file, str(file.relative_to(folder)))
        group = (str(file.parent), re.sub(r"[-_.]?\d+$", "", stem))
        splits.setdefault(split, {}).setdefault(group, []).append(shard)
    # Files whose names have no split are the training data, unless other files are named so.
    unnamed = splits.pop("", {})
    if "train" in splits:
        unread += [shard.label for shards in unnamed.values() for shard in shards]
    elif unnamed:
        splits = {"train": unnamed} | splits
        return {name: list(chain(*groups.values())) for name, groups in splits.items()}
    return {
        split: _one_split(folder, split, groups, split in wanted, unread)
        for split, groups in splits.items()
    }


def _one_split(
    folder: Path,
    split: str,
    groups: Mapping[tuple[str, str], list[_Shard]],
    wanted: bool,
    unread: list[str],
) -> list[_Shard]:
    """Return the files of a split; of several stems in one folder, those named like the split."""
    by_folder: dict[str, dict[str, list[_Shard]]] = {}
    for (parent, stem), shards in groups.items():
        by_folder.setdefault(parent, {})[stem] = shards
    files: list[_Shard] = []
    for stems in by_folder.values():
        if len(stems) == 1:
            files += next(iter(stems.values()))
        elif split in stems:
            files += stems[split]
            unread += [s.label for stem, shards in stems.items() if stem != split for s in shards]
        elif wanted:
            names = sorted(stems)
            key = "dataset_test_split" if split in ("test", "validation") else "dataset_train_split"
            raise RecipeError(
                f"{folder} holds several splits that could be `{split}`: {', '.join(names)}. Set "
                f"`{key}: {names[0]}` to use one of them, or move each into a separate subfolder "
                "to use them all."
            )
    return files


def _check_written_once(folder: Path, files: list[Path]) -> None:
    """Raise RecipeError if two files of a folder differ in their suffix alone."""
    seen: dict[tuple[Path, str], Path] = {}
    for file in files:
        twin = seen.setdefault((file.parent, _stem(file)), file)
        if twin != file:
            raise RecipeError(
                f"{folder} holds {twin.relative_to(folder)} and {file.relative_to(folder)}, which "
                "may be the same rows twice. Move one of them away, or give a single file."
            )


def _is_data(folder: Path, name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return (
        bool(data_suffix(name.name))
        and name.name not in _NO_DATA
        and not hidden
        and (folder / name).is_file()
    )


def _split_word(name: str) -> str | None:
    for split, words in _SPLIT_WORDS.items():
        if re.search(rf"(?<![a-z])({words})(?![a-z])", name.lower()):
            return split
    return None


def _stem(path: Path) -> str:
    suffix = data_suffix(path.name)
    return path.name[: len(path.name) - len(suffix)] if suffix else path.stem


def _hub_splits(name: str, config: str | None) -> dict[str, list[_Shard]]:
    if name.startswith(("/", ".", "~")) or data_suffix(name) or name.count("/") > 1:
        raise RecipeError(
            f"`dataset_name` is {name}, which does not exist. "
            f"Give a folder, a file ending in {READABLE}, or a Hub id."
        )
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        splits = load_dataset(name, config)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"`dataset_name` is `{name}`, which is not a local folder or file, and cannot be "
            f"opened as a dataset of the Hub ({reason}). Check its spelling, `dataset_config` "
            "and the network, or download it and give the folder."
        ) from error
    source = name.rsplit("/", 1)[-1]
    return {split: [_Shard(source, data, split)] for split, data in splits.items()}
