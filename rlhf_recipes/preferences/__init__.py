"""Preference data as the stages know it: what a data recipe may say, and how prepared data is read.

How it is made from a dataset of any usual shape is in `preferences.preparation`.
"""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.containers import READABLE, read_json_lines
from rlhf_recipes.preferences.formats import OURS
from rlhf_recipes.preferences.shapes import first_turn_key
from rlhf_recipes.preferences.splits import whole_groups
from rlhf_recipes.prompts import prompt_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

__all__ = [
    "DataArguments",
    "data_fingerprint",
    "dataset_fingerprint",
    "load_prepared",
    "split_off",
    "unique_prompts",
]


@dataclass
class DataArguments:
    """Where preference data comes from, and how much of it is used."""

    dataset_name: str = field(
        metadata={"help": f"Hub id, folder, or file that ends in {READABLE}."}
    )
    columns: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Which columns of the data are prompt, system, input, chosen and rejected, "
            "where they have other names: {question: prompt, answer.good: chosen}. A dot leads "
            "into a column; null leaves a column out."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration on the Hub, or sub-folder of the folder."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default="test",
        metadata={
            "help": "Split to validate on, `validation` if there is no `test`. Where neither is "
            "there, or if this is null, a part of the training prompts is held out."
        },
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Fraction of the pairs to hold out where there is no split. Pairs that share "
            "a first user turn stay together."
        },
    )
    judge_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training pairs to keep out of data/ for a judge, with prompts "
            "of their own. They go to judge/data/, on which reward.py trains a reward model "
            "independent of the proxy."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Keep so many training pairs, balanced."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Keep so many validation pairs, balanced."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Leave out pairs whose prompt with the longer answer is longer than this, in "
            "tokens of model_name_or_path, or in words and punctuation marks if that is not given."
        },
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model whose tokenizer and chat template measure lengths."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of that model on the Hub."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja file, for a model that has no chat template."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the split and of the subsets."})
    output_dir: str = field(
        default="outputs", metadata={"help": "Folder to write data/ and dataset_stats.json to."}
    )
    plan: bool = field(default=False, metadata={"help": "Print what would be written, and stop."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace prepared data that is there already."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"`{name}` is {value}, which leaves no data. "
                    "Give at least 1, or leave it out for no limit."
                )
        for name in ("validation_fraction", "judge_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(
                    f"`{name}` is {value}, which leaves one part of the prompts empty. "
                    "Give a share between 0 and 1, such as 0.1."
                )
        self._check_columns()
        if self.dataset_test_split == self.dataset_train_split:
            raise ValueError(
                f"`dataset_test_split` is `{self.dataset_test_split}`, which is the training "
                "split too. Name another split, or set it to null to hold out training prompts."
            )

    def _check_columns(self) -> None:
        targets = [ours for ours in (self.columns or {}).values() if ours is not None]
        unknown = [repr(ours) for ours in targets if ours not in OURS]
        if unknown:
            raise ValueError(
                f"`columns` maps to {', '.join(unknown)}. A column of the data can be mapped to "
                f"{', '.join(OURS)}, or to null to leave it out."
            )
        if len(set(targets)) < len(targets):
            raise ValueError(
                f"`columns` maps two columns to one: {self.columns}. Map one of them, or prepare "
                "the parts of the data separately."
            )


def load_prepared(
    folder: str | Path, max_train_samples: int | None = None, max_eval_samples: int | None = None
) -> "DatasetDict":
    """Splits `train` and `validation` of prepared data: prompt, chosen, rejected, source, turns.

    A sample is the beginning of its file. The files are in balanced order, so it has the same mix
    of sources and turns as the whole, and a smaller sample is part of a larger one.

    >>> from rlhf_recipes import load_prepared
    >>> load_prepared(data, max_train_samples=2)["train"].num_rows
    2
    """
    # Imported here because it takes a second, and scripts must show their help and errors sooner.
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
    """Each prompt of a split once, in their order: what PPO, GRPO and evaluation sample on."""
    from datasets import Dataset

    seen: dict[str, object] = {prompt_text(prompt): prompt for prompt in split["prompt"]}
    return Dataset.from_dict({"prompt": list(seen.values())})


def split_off(prompts: "Dataset", count: int) -> tuple["Dataset", "Dataset"]:
    """Prompts to train on, and the last `count` to evaluate on.

    Prompts that share a first user turn stay on one side, so those taken may lie further ahead, and
    where the turns do not add up to `count`, fewer are taken.
    """
    keys = [first_turn_key(prompt) for prompt in prompts["prompt"]]
    held_out = whole_groups(Counter(reversed(keys)), count)
    if not held_out or count >= len(prompts):
        raise RecipeError(
            f"`num_eval_prompts` is {count} of {len(prompts)} training prompts, which have "
            f"{len(set(keys))} different first user turns. Prompts that share one stay together, "
            "so none would be left to train on. Give fewer, or data with more prompts."
        )
    evaluated = [i for i, key in enumerate(keys) if key in held_out][-count:]
    if len(evaluated) < count:
        logging.getLogger(__name__).warning(
            "%d prompts are evaluated on, not `num_eval_prompts: %d`: prompts that share a first "
            "user turn stay together.",
            len(evaluated),
            count,
        )
    kept = [i for i, key in enumerate(keys) if key not in held_out]
    return prompts.select(kept), prompts.select(evaluated)


def dataset_fingerprint(folder: str | Path) -> str:
    """Return the fingerprint that prepared data got when it was written."""
    return str(_recorded_fingerprint(folder))


def data_fingerprint(folder: str | Path) -> str | None:
    """Return the SHA-256 of prepared data's files as they are now; None where one is missing."""
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
    """Raise RecipeError if the rows are not those that were prepared: all records name those."""
    prepared, now = _recorded_fingerprint(folder), data_fingerprint(folder)
    if None not in (prepared, now) and prepared != now:
        raise RecipeError(
            f"{folder} holds other rows than were prepared there (its files have the SHA-256 "
            f"{now}, run.json says {prepared}), so its statistics and its split need not be true. "
            f"Prepare what you changed as data of its own, with `--dataset_name {folder}` and "
            "another `output_dir`, or bring the files back."
        )
