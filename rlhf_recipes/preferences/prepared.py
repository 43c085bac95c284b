"""Load prepared preference data, take its prompts, and check that its files are unchanged."""

import hashlib
import json
import logging
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import read_json_lines
from rlhf_recipes.preferences.shapes import first_turn_key
from rlhf_recipes.preferences.splits import whole_groups
from rlhf_recipes.prompts import prompt_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_prepared(
    folder: str | Path, max_train_samples: int | None = None, max_eval_samples: int | None = None
) -> "DatasetDict":
    """Load the splits `train` and `validation` that prepare_data.py wrote.

    Columns: prompt, chosen, rejected, source, turns. The rows of a file are in stratified order:
    the first n rows have the same mix of sources and numbers of turns as the whole file. A sample
    is the first rows, so a smaller sample is a subset of a larger one.

    Raises RecipeError if the folder was not prepared, or if its rows were changed since.

    >>> from rlhf_recipes import load_prepared
    >>> load_prepared(data, max_train_samples=2)["train"].num_rows
    2
    """
    # Imported here because it takes a second, which a script's help and errors need not wait for.
    from datasets import Dataset, DatasetDict

    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise RecipeError(
            f"`dataset_name` is {folder}, which is not a folder of prepared data (it has no "
            "run.json). Run `make data`, or recipes/prepare_data.py on your data, and give the "
            "folder data/ that it writes."
        )
    _check_unchanged(folder)
    samples = {"train": max_train_samples, "validation": max_eval_samples}
    return DatasetDict(
        {
            split: Dataset.from_list(
                [row for _, row in islice(read_json_lines(folder / f"{split}.jsonl"), count)]
            )
            for split, count in samples.items()
        }
    )


def unique_prompts(split: "Dataset") -> "Dataset":
    """Return the distinct prompts of a split in their order, for PPO, GRPO and evaluation."""
    from datasets import Dataset

    by_text: dict[str, object] = {prompt_text(prompt): prompt for prompt in split["prompt"]}
    return Dataset.from_dict({"prompt": list(by_text.values())})


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


def recorded_fingerprint(folder: str | Path) -> str:
    """Return the fingerprint that the folder's run.json recorded when the data was written."""
    return str(_recorded_fingerprint(folder))


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


def _recorded_fingerprint(folder: str | Path) -> object:
    record = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    return record.get("dataset_fingerprint")


def _check_unchanged(folder: Path) -> None:
    """Raise RecipeError if the rows changed: later runs record the fingerprint in run.json."""
    recorded, current = _recorded_fingerprint(folder), current_fingerprint(folder)
    if None not in (recorded, current) and recorded != current:
        raise RecipeError(
            f"The files in {folder} were changed after they were prepared (their SHA-256 is "
            f"{current}, and run.json recorded {recorded}), so the statistics and the split may no "
            f"longer be right. Prepare the changed files again with `--dataset_name {folder}` and "
            "another `output_dir`, or restore the original files."
        )
