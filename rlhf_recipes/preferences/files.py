"""The splits of a preference dataset as they stand on the Hub, in a folder or in a file.

The rows of one file are read in `preferences.containers`; what they mean is in `formats`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import READABLE, data_suffix, read_rows

# The words by which the Hub tells splits apart in file and folder names.
_SPLIT_WORDS = {
    "train": "train|training",
    "test": "test|testing|eval|evaluation",
    "validation": "validation|valid|val|dev",
}
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class RawRow(NamedTuple):
    """A row as it was found, the part of the dataset it belongs to, and where it stands."""

    source: str
    place: str
    fields: Mapping[str, object]


class Splits(NamedTuple):
    """Training rows and, where the dataset has them, held-out rows; `unread` are other files."""

    train: Iterable[RawRow]
    test: Iterable[RawRow] | None
    unread: tuple[str, ...] = ()


class _Part(NamedTuple):
    source: str
    data: Path | Iterable[Mapping[str, object]]  # a file, or the rows themselves
    label: str


def read_splits(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str | None = "test",
) -> Splits:
    """Open the training rows and, where the dataset has them, the held-out rows.

    If there is no split called `test`, one called `validation` serves. Rows are read as they are
    asked for.

    Args:
        name: Hub id, folder, or file.
        config: Configuration on the Hub, or sub-folder of a folder.
        test_split: None to leave held-out rows alone even where there are some.
    """
    path = Path(name).expanduser()
    unread: list[str] = []
    if path.is_dir():
        folder = path / config if config else path
        splits = _saved_splits(folder) or _folder_splits(folder, {train_split, test_split}, unread)
    elif path.is_file():
        splits = {train_split: [_Part(_stem(path), _checked(path), path.name)]}
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
    unread += [
        part.label
        for split, parts in splits.items()
        if split not in (train_split, test_split)
        for part in parts
    ]
    test = None if test_split is None else _rows(splits[test_split])
    return Splits(_rows(splits[train_split]), test, tuple(unread))


def _rows(parts: list[_Part]) -> Iterator[RawRow]:
    for part in parts:
        rows: Iterable[tuple[int, Mapping[str, object]]]
        rows = read_rows(part.data) if isinstance(part.data, Path) else enumerate(part.data, 1)
        for number, fields in rows:
            yield RawRow(part.source, f"{part.label}:{number}", fields)


def _checked(path: Path) -> Path:
    if not data_suffix(path.name):
        raise RecipeError(
            f"{path} is not a file that can be read as preference data. "
            f"Give a file that ends in {READABLE}, a folder of them, or a Hub id."
        )
    return path


def _saved_splits(folder: Path) -> dict[str, list[_Part]]:
    """Splits that `save_to_disk` of datasets wrote; a dataset without splits is all training."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return {}
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(folder)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"{folder} cannot be read as what `save_to_disk` wrote ({reason}). "
            "Check that the folder is complete, and copy or write it again."
        ) from error
    source = folder.resolve().name
    splits = {"train": saved} if isinstance(saved, Dataset) else saved
    return {split: [_Part(source, data, split)] for split, data in splits.items()}


def _folder_splits(
    folder: Path, wanted: set[str | None], unread: list[str]
) -> dict[str, list[_Part]]:
    """Files of a folder, at any depth, by split; a sub-folder's name is their source."""
    names = [f.relative_to(folder) for f in folder.rglob("*")]
    files = [folder / name for name in sorted(names) if _is_data(folder, name)]
    if not files:
        there = sorted({str(name.parts[0]) for name in names})[:8]
        raise RecipeError(
            f"{folder} holds no data: there is no file ending in {READABLE} in it or in its "
            f"sub-folders. It holds: {', '.join(there) or 'nothing'}. "
            "Give the folder that holds the files."
        )
    _check_written_once(folder, files)
    splits: dict[str, dict[tuple[str, str], list[_Part]]] = {}
    for file in files:
        parent = "" if file.parent == folder else file.parent.name
        no_source = parent in ("", "data") or _split_word(parent) is not None
        source = folder.resolve().name if no_source else parent
        stem = re.sub(r"-\d+-of-\d+$", "", _stem(file))
        split = stem if stem in wanted else _split_word(stem) or _split_word(parent) or ""
        part = _Part(source, file, str(file.relative_to(folder)))
        group = (str(file.parent), re.sub(r"[-_.]?\d+$", "", stem))
        splits.setdefault(split, {}).setdefault(group, []).append(part)
    # Files that name no split are the training data, unless other files claim to be that.
    unnamed = splits.pop("", {})
    if "train" in splits:
        unread += [part.label for parts in unnamed.values() for part in parts]
    elif unnamed:
        splits = {"train": unnamed} | splits
        return {s: [p for parts in groups.values() for p in parts] for s, groups in splits.items()}
    return {
        split: _one_split(folder, split, groups, split in wanted, unread)
        for split, groups in splits.items()
    }


def _one_split(
    folder: Path,
    split: str,
    groups: Mapping[tuple[str, str], list[_Part]],
    wanted: bool,
    unread: list[str],
) -> list[_Part]:
    """The files of a split: of several stems in one folder, the one that is the split's name."""
    by_folder: dict[str, dict[str, list[_Part]]] = {}
    for (parent, stem), parts in groups.items():
        by_folder.setdefault(parent, {})[stem] = parts
    files: list[_Part] = []
    for stems in by_folder.values():
        if len(stems) == 1:
            files += next(iter(stems.values()))
        elif split in stems:
            files += stems[split]
            unread += [p.label for stem, parts in stems.items() if stem != split for p in parts]
        elif wanted:
            names = sorted(stems)
            key = "dataset_test_split" if split in ("test", "validation") else "dataset_train_split"
            raise RecipeError(
                f"{folder} holds several splits that could be `{split}`: {', '.join(names)}. Set "
                f"`{key}: {names[0]}` for one of them, or move each into a sub-folder of its own "
                "to use them all."
            )
    return files


def _check_written_once(folder: Path, files: list[Path]) -> None:
    """Raise RecipeError if a file stands beside another of its name in another format."""
    seen: dict[tuple[Path, str], Path] = {}
    for file in files:
        twin = seen.setdefault((file.parent, _stem(file)), file)
        if twin != file:
            raise RecipeError(
                f"{folder} holds {twin.relative_to(folder)} beside {file.relative_to(folder)}, "
                "which may be the same rows twice. Move one of them away, or give a file."
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


def _hub_splits(name: str, config: str | None) -> dict[str, list[_Part]]:
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
            f"`dataset_name` is `{name}`: there is no such folder or file here, and it cannot be "
            f"opened as a dataset of the Hub ({reason}). Check its spelling, its `dataset_config` "
            "and the network, or download it and give the folder."
        ) from error
    source = name.rsplit("/", 1)[-1]
    return {split: [_Part(source, data, split)] for split, data in splits.items()}
