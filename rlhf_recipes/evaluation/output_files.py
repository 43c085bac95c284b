"""The files of an evaluation: who writes them, and how a new one replaces a finished one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT, discard_replaced, hold, put_in_place
from rlhf_recipes.records import flush_to_disk, read_json

FINISHED = "evaluation_results.json"
"""Written last: an evaluation that has it is finished."""

COLLECTED = "collection.json"
"""Written last of the samples."""

ANALYSIS = "ANALYSIS.md"
RESULT_FILES = (
    FINISHED,
    "failure_analysis.json",
    "reward_model_errors.json",
    "kl.png",
    "pareto_frontier.png",
    "report.html",
    "reward_distributions.png",
    "reward_model.png",
    "training_curves.png",
    "win_rates.png",
)
SAMPLE_FILES = (COLLECTED, "*_samples.json", "verdicts_*.json")
"""Journals are no such files: those of models that are left out this time stay."""


def check_replaceable(output_dir: Path, overwrite: bool) -> None:
    """Raise RecipeError where a finished evaluation is not to be replaced."""
    results = output_dir / "results"
    killed_in_place = (results / REPLACEMENT / FINISHED).is_file()
    if (results / FINISHED).exists() and not (overwrite or killed_in_place):
        raise RecipeError(
            f"{results / FINISHED} already contains a finished evaluation. "
            "Give another `output_dir`, or `--overwrite`: the finished one stays until the new one "
            "has finished."
        )


def open_evaluation(output_dir: Path, recipe: Mapping[str, Any], overwrite: bool) -> bool:
    """Take the lock of an evaluation's files, and refuse to replace a finished one unless told to.

    The files of an evaluation that was killed while they were put in place are put there first.
    Returns whether nothing is left to do, because that was the evaluation of this recipe.
    """
    samples, results = output_dir / "samples", output_dir / "results"
    hold(samples)
    for folder in (samples, results):
        discard_replaced(folder)
    if (results / REPLACEMENT / FINISHED).is_file():
        put_evaluation_in_place(output_dir)
        if read_json(samples / COLLECTED)["run"]["recipe"] == recipe:
            return True
    check_replaceable(output_dir, overwrite)
    return False


def collecting_folder(output_dir: Path) -> Path:
    """Return where samples are collected: beside those of a finished evaluation until the end."""
    samples = output_dir / "samples"
    finished = (output_dir / "results" / FINISHED).exists()
    return samples / REPLACEMENT if finished else samples


def collected_folder(output_dir: Path) -> Path:
    """Return where the newest complete samples are."""
    samples = output_dir / "samples"
    replacement = samples / REPLACEMENT
    return replacement if (replacement / COLLECTED).is_file() else samples


def put_evaluation_in_place(output_dir: Path) -> None:
    """Replace samples, results and ANALYSIS.md by the new ones, which are complete.

    The finished evaluation's record goes first and the new one comes last, so that no moment has a
    record of one beside files of the other.
    """
    samples, results = output_dir / "samples", output_dir / "results"
    flush_to_disk(results / REPLACEMENT)
    (results / FINISHED).unlink(missing_ok=True)
    if (samples / REPLACEMENT / COLLECTED).is_file():
        put_in_place(samples, SAMPLE_FILES, COLLECTED)
    if (results / REPLACEMENT / ANALYSIS).exists():
        (results / REPLACEMENT / ANALYSIS).replace(output_dir / ANALYSIS)
    put_in_place(results, RESULT_FILES, FINISHED)
