"""The folder of a training run: its files, its lock, and how a run replaces another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT, discard_replaced, hold, put_in_place
from rlhf_recipes.records import flush_to_disk, read_json, read_yaml, write_json, write_text

PROCESSES = "processes"
"""The number of processes among a run's inputs: each reads its own part of the data."""

RECORD = "run.json"
"""Written last: a folder that has one is finished."""

FILES = (
    "README.md",
    "adapter_config.json",
    "adapter_model*.safetensors*",
    "added_tokens.json",
    "all_results.json",
    "chat_template.jinja",
    "checkpoint-[0-9]*",
    "completions",
    "inputs.json",
    "merges.txt",
    "recipe.yaml",
    "run.json",
    "runs",
    "scores.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
    "training_curves.png",
    "value",
    "vocab.*",
)
"""Patterns of the files that a run writes into its folder, and that another run replaces."""

FREE_TO_CHANGE = (
    "output_dir",
    "push_",
    "hub_",
    "save_",
    "logging_",
    "report_to",
    "disable_tqdm",
)
"""Prefixes of the recipe keys that may change between a killed run and its continuation."""


def finished(final: Path) -> RecipeError:
    """Return the error for a finished run that may not be replaced without `--overwrite`."""
    return RecipeError(
        f"{final} already contains a finished run. Give another `output_dir`, or `--overwrite` to "
        "train again: the finished run stays until the new one has finished."
    )


class RunFolder:
    """The folder that a run writes: its own, or a replacement inside it if that has a finished run.

    Attributes:
        final: The folder that the recipe names.
        path: The folder that the run writes until it has finished.
    """

    def __init__(self, final: Path, overwrite: bool) -> None:
        if (final / RECORD).exists() and not overwrite:
            raise finished(final)
        self.final = final
        self.path = final / REPLACEMENT if (final / RECORD).exists() else final

    @property
    def replaces(self) -> bool:
        """Whether the folder has a finished run."""
        return self.path != self.final

    def begin(self, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Write the recipe and the fingerprints of the inputs, for a continuation to compare."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False))
        write_json(self.path / "inputs.json", inputs)

    def finish(self, record: Mapping[str, object]) -> None:
        """Write the run's record, its last file, and replace a finished run by this one."""
        flush_to_disk(self.path)
        write_json(self.path / RECORD, record)
        if self.replaces:
            put_in_place(self.final, FILES, RECORD)
            self.path = self.final


def open_folder(final: Path) -> None:
    """Lock a run folder, and finish a replacement whose process was killed."""
    hold(final)
    discard_replaced(final)
    if (final / REPLACEMENT / RECORD).is_file():
        put_in_place(final, FILES, RECORD)


def check_continuation(folder: Path, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Raise RecipeError if the checkpoints in a folder are of another recipe or other inputs.

    A run continued with other settings would be a run of neither. Inputs are compared by their
    fingerprints, not by their paths.
    """
    changed = changes_since(folder, recipe, inputs)
    if changed:
        raise RecipeError(
            "\n- ".join([f"{folder} holds checkpoints of a run with other settings:", *changed])
            + "\nGive the same settings and inputs to go on, another `output_dir` to start over, "
            f"or delete {folder}."
        )


def changes_since(folder: Path, recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """Return the differences of a recipe and its inputs from those of a folder's run, in words."""
    if not (folder / "recipe.yaml").exists():
        return []
    before = read_yaml(folder / "recipe.yaml")
    inputs_before = read_json(folder / "inputs.json") if (folder / "inputs.json").exists() else {}
    by_content = inputs.keys() & inputs_before.keys()
    changed = [
        f"`{name}`: {before.get(name, 'default')} there, {recipe.get(name, 'default')} now"
        for name in sorted({*before, *recipe} - by_content)
        if before.get(name) != recipe.get(name) and not name.startswith(FREE_TO_CHANGE)
    ]
    changed += [
        f"number of processes: {inputs_before[name]} there, {inputs[name]} now"
        if name == PROCESSES
        else f"`{name}`: what {recipe.get(name, 'the default')} holds has changed since"
        for name in sorted(by_content)
        if inputs[name] != inputs_before[name]
    ]
    return changed
