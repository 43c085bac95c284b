"""Prepare preference data in memory, for a stage whose `dataset_name` is not prepared data."""

import hashlib
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlhf_recipes.collector import no_collection
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.arguments import DataArguments
from rlhf_recipes.preferences.preparation import (
    SPLITS,
    STAGED,
    STATISTICS,
    encoded_rows,
    prepare,
)
from rlhf_recipes.preferences.summary import summary

if TYPE_CHECKING:
    from datasets import DatasetDict


class InMemory(NamedTuple):
    """The splits train and validation, and the fingerprint that their files would have."""

    splits: "DatasetDict"
    fingerprint: str


def may_be_raw(name: str | Path) -> bool:
    """Whether a name that is not a prepared folder can be a dataset: a path, or a Hub id.

    It cannot if it is a folder that prepare_data.py has not finished, or has not begun: a missing
    `outputs/data` is never looked for on the Hub.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return path.name != "data"
    written = (path.name == "data") and any((p / STATISTICS).is_file() for p in path.parents[:2])
    return not (written or any(path.glob(f"{STAGED}*")))


def prepare_in_memory(name: str | Path) -> InMemory:
    """Prepare a dataset with the default settings of prepare_data.py, and write nothing.

    Rows, order, split and fingerprint are those of the files that prepare_data.py would write. The
    settings of the stage have no influence, so that all stages and the evaluation have the same
    split. The first process prints a summary. A second call in a process returns the same pairs
    unless the files of the dataset have changed.

    Raises RecipeError if there is no such dataset, or if it cannot be prepared.
    """
    problem = (
        f"`dataset_name` is {name}, which is not a folder of prepared data (it has no run.json). "
        "Run `make data`, or recipes/prepare_data.py on your data, and give the folder data/ that "
        "it writes."
    )
    if not may_be_raw(name):
        raise RecipeError(problem)
    try:
        return _prepare(str(name), _versions(Path(name).expanduser().resolve()))
    except RecipeError as error:
        raise RecipeError(f"{problem} It cannot be prepared on the fly:\n{error}") from error


@lru_cache(maxsize=1)
def _prepare(name: str, versions: tuple[object, ...]) -> InMemory:
    # Imported here because it takes a second, which a script's help and errors need not wait for.
    from datasets import Dataset, DatasetDict

    with no_collection():
        prepared = prepare(DataArguments(dataset_name=name))
    digest = hashlib.sha256()
    for split in SPLITS:
        for line in encoded_rows(prepared.pairs[split]):
            digest.update(line)
    if os.getenv("RANK", "0") == "0":
        sys.stdout.write(
            f"{name} was prepared on the fly in {prepared.duration_seconds:.1f} s, with the "
            "default settings of recipes/prepare_data.py (it prepares once for all stages).\n\n"
            f"{summary(prepared)}\n\n"
        )
        sys.stdout.flush()
    return InMemory(
        DatasetDict(
            {s: Dataset.from_list([p.as_row() for p in prepared.pairs[s]]) for s in SPLITS}
        ),
        digest.hexdigest(),
    )


def _versions(path: Path) -> tuple[object, ...]:
    """Return name, size and time of each file of a dataset; empty for one of the Hub."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)
