"""Load preference data for a stage, take its prompts, and check that its files are unchanged."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import read_json_lines
from rlhf_recipes.preferences.on_the_fly import prepare_in_memory
from rlhf_recipes.preferences.shapes import first_turn_key
from rlhf_recipes.preferences.splits import whole_groups
from rlhf_recipes.prompts import prompt_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_prepared(
    dataset_name: str | Path,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> "DatasetDict":
    """Load the splits `train` and `validation` of a folder that prepare_data.py wrote.

    Any other folder, a file or a Hub id is prepared in memory, with the default settings of
    prepare_data.py, and gives the same pairs; a summary is printed.

    Columns: prompt, chosen, rejected, source, turns. The rows of a split are in stratified order:
    the first n rows have the same mix of sources and numbers of turns as the whole split. A sample
    is the first rows, so a smaller sample is a subset of a larger one.

    Raises RecipeError if the dataset cannot be prepared, or if prepared rows were changed since.

    >>> from rlhf_recipes import load_prepared
    >>> load_prepared(data, max_train_samples=2)["train"].num_rows
    2
    """
    # Imported here because it takes a second, which a script's help and errors need not wait for.
    from datasets import Dataset, DatasetDict

    samples = {"train": max_train_samples, "validation": max_eval_samples}
    if not is_prepared(dataset_name):
        splits = prepare_in_memory(dataset_name).splits
        return DatasetDict(
            {s: splits[s].select(range(len(splits[s]))[:count]) for s, count in samples.items()}
        )
    folder = Path(dataset_name)
    _check_unchanged(folder)
    return DatasetDict(
        {
            split: Dataset.from_list(
                [row for _, row in islice(read_json_lines(folder / f"{split}.jsonl"), count)]
            )
            for split, count in samples.items()
        }
    )


def is_prepared(dataset_name: str | Path) -> bool:
    """Whether a folder has data that prepare_data.py finished."""
    return Path(dataset_name, "run.json").is_file()


def unique_prompts(split: "Dataset") -> "Dataset":
    """Return the distinct prompts of a split in their order, for PPO, GRPO and evaluation."""
    from datasets import Dataset

    by_text: dict[str, object] = {prompt_text(prompt): prompt for prompt in split["prompt"]}
    return Dataset.from_dict({"prompt": list(by_text.values())})


def chosen_completions(split: "Dataset", rows: Sequence[int]) -> "Dataset":
    """Return the prompts and chosen completions of some rows of a split, for SFT."""
    columns = split.select(rows).select_columns(["prompt", "chosen"])
    return columns.rename_column("chosen", "completion")


def split_off(prompts: "Dataset", count: int) -> tuple["Dataset", "Dataset"]:
    """Return the prompts to train on, and about `count` prompts to evaluate on, from the end.

    Prompts with the same first user turn stay on one side. So a held-out prompt may come from
    further ahead, and fewer than `count` are held out if whole groups do not add up to it.

    Raises RecipeError if no prompt would be left to train on.
    """
    keys = [first_turn_key(prompt) for prompt in prompts["prompt"]]
    held_out = whole_groups(Counter(reversed(keys)), count)
    if not held_out or count >= len(prompts):
        raise RecipeError(
            f"`num_eval_prompts` is {count} of {len(prompts)} training prompts, which have "
            f"{len(set(keys))} different first user turns. Prompts with the same first turn stay "
            "together, so none would be left to train on. Lower `num_eval_prompts`, or give data "
            "with more prompts."
        )
    evaluated = [i for i, key in enumerate(keys) if key in held_out][-count:]
    if len(evaluated) < count:
        logging.getLogger(__name__).warning(
            "%d prompts are evaluated on, not `num_eval_prompts: %d`, because prompts with the "
            "same first user turn stay together.",
            len(evaluated),
            count,
        )
    trained = [i for i, key in enumerate(keys) if key not in held_out]
    return prompts.select(trained), prompts.select(evaluated)


def dataset_fingerprint(dataset_name: str | Path) -> str | None:
    """Return the SHA-256 of the prepared pairs; None if a file of a prepared folder is missing.

    It is the same for a prepared folder and for its dataset prepared on the fly.

    Raises RecipeError if the dataset cannot be prepared.
    """
    if is_prepared(dataset_name):
        return current_fingerprint(dataset_name)
    return prepare_in_memory(dataset_name).fingerprint


def current_fingerprint(folder: str | Path) -> str | None:
    """Return the SHA-256 of train.jsonl and validation.jsonl; None if one is missing."""
    digest = hashlib.sha256()
    paths = [Path(folder) / f"{split}.jsonl" for split in ("train", "validation")]
    if not all(path.is_file() for path in paths):
        return None
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _check_unchanged(folder: Path) -> None:
    """Raise RecipeError if the rows changed: later runs record the fingerprint in run.json."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    recorded, current = record.get("dataset_fingerprint"), current_fingerprint(folder)
    if None not in (recorded, current) and recorded != current:
        raise RecipeError(
            f"The files in {folder} were changed after they were prepared (their SHA-256 is "
            f"{current}, and run.json recorded {recorded}), so the statistics and the split may no "
            f"longer be right. Prepare the changed files again with `--dataset_name {folder}` and "
            "another `output_dir`, or restore the original files."
        )
