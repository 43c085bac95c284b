"""The keys of a data recipe."""

from dataclasses import dataclass, field
from typing import Any

from rlhf_recipes.preferences.containers import READABLE
from rlhf_recipes.preferences.formats import OURS


@dataclass
class DataArguments:
    """Arguments of prepare_data.py: where preference data comes from and how much is used."""

    dataset_name: str = field(
        metadata={
            "help": f"Preference dataset: a Hub id, a folder, or a file that ends in {READABLE}."
        }
    )
    columns: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Mapping from the dataset's columns to prompt, system, input, chosen and "
            "rejected, for a layout that is not recognized: {question: prompt, answer.good: "
            "chosen}. A dot addresses a field inside a column; null drops a column."
        },
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of the Hub dataset, or subfolder of the folder."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(
        default="test",
        metadata={
            "help": "Split to validate on; `validation` is used if there is no `test`. If neither "
            "exists, or if this is null, a fraction of the training pairs is held out."
        },
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Fraction of the training pairs to hold out if the dataset has no test split. "
            "Pairs with the same first user turn stay in one split."
        },
    )
    judge_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training pairs to reserve for a judge, a second reward model "
            "independent of the proxy. They are written to judge/data/ and share no first user "
            "turn with data/."
        },
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of training pairs, stratified by source and number of turns."
        },
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of validation pairs, stratified by source and number of turns."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum length of the prompt plus the longer completion; longer pairs are "
            "dropped. Counted in tokens of `model_name_or_path`, or in words and punctuation "
            "marks if no model is given."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model whose tokenizer and chat template are used to count tokens."},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "Path of a Jinja chat template, for a model that has none."},
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Arguments of the chat template, such as {enable_thinking: false} for Qwen3. "
            "Give every stage the same."
        },
    )
    seed: int = field(
        default=42, metadata={"help": "Random seed of the split and of the sampled pairs."}
    )
    output_dir: str = field(
        default="outputs",
        metadata={"help": "Output directory for data/, dataset_stats.json and the figure."},
    )
    plan: bool = field(
        default=False,
        metadata={"help": "Whether to print what would be written, and write nothing."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Whether to replace data that is already prepared."}
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
                    f"`{name}` is {value}, which leaves no pairs on one side of the split. "
                    "Give a fraction between 0 and 1, such as 0.1."
                )
        if self.chat_template_kwargs and self.model_name_or_path is None:
            raise ValueError(
                f"`chat_template_kwargs` is {self.chat_template_kwargs}, but no model is given, so "
                "words are counted and no chat template is used. Give `model_name_or_path`, or "
                "leave it out."
            )
        self._check_columns()
        if self.dataset_test_split == self.dataset_train_split:
            raise ValueError(
                f"`dataset_test_split` is `{self.dataset_test_split}`, which is the training "
                "split too. Name another split, or set it to null to hold out training pairs."
            )

    def _check_columns(self) -> None:
        targets = [target for target in (self.columns or {}).values() if target is not None]
        unknown = [repr(target) for target in targets if target not in OURS]
        if unknown:
            raise ValueError(
                f"`columns` maps to {', '.join(unknown)}, which is not a field of a pair. Map a "
                f"column of the dataset to {', '.join(OURS)}, or to null to drop it."
            )
        if len(set(targets)) < len(targets):
            raise ValueError(
                f"`columns` maps two columns to the same field: {self.columns}. Map one of them, "
                "or prepare the datasets separately."
            )
