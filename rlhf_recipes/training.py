"""Steps of every training stage around its trainer: check the run folder, train, save, push.

A run folder is all that later stages know of a run. `run.json` is written last, so a folder that
has one is finished.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainingArguments

from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.hub.push import push, repo_name, write_card
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import peak_memory_gb
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.precision import train_in_float32
from rlhf_recipes.records import run_record, workspace
from rlhf_recipes.runs.checkpoints import WholeCheckpoints, last_checkpoint
from rlhf_recipes.runs.resuming import seconds_trained, train
from rlhf_recipes.runs.run_folder import (
    RECORD,
    RunFolder,
    changes_since,
    check_continuation,
    open_folder,
)
from rlhf_recipes.training_curves import training_curves_figure

Review = Callable[[Path], dict[str, float]]
"""Something to do with the trained adapter's folder before the run counts as finished."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run whose folder has been checked and is locked.

    Args:
        folder: Where the run writes.
        recipe: The resolved recipe.
        inputs: Fingerprints of what the run is made from.
        rows: Per split, how many rows are used, cut and left out.
        checkpoint: Where training goes on; None where it starts.
        push_to_hub: What the recipe asked for, whatever the trainer was told since.
        started: The clock when the folder was checked.
    """

    stage: str
    folder: RunFolder
    recipe: dict[str, Any]
    inputs: dict[str, str]
    rows: dict[str, dict[str, int]]
    checkpoint: str | None
    push_to_hub: bool
    started: float = field(default_factory=time.monotonic)

    @property
    def output_dir(self) -> str:
        """Folder for the trainer: the recipe's, or a replacement in it beside a finished run."""
        return str(self.folder.path)


def check_run_folder(inputs: Inputs) -> TrainingRun | None:
    """Check that a run may write its folder, and lock the folder until this process ends.

    Returns None for a run that an earlier process had trained to its end and was killed while it
    put its files in place. They are put in place now, and there is nothing left to train.

    Raises RecipeError for a finished run without `--overwrite`, for a folder that another process
    is writing, and for checkpoints of other settings or inputs.
    """
    training, recipe, fingerprints = inputs.training, inputs.resolved, inputs.fingerprints
    final = Path(training.output_dir)
    replacement = final / REPLACEMENT
    was_complete = (replacement / RECORD).is_file()
    is_this_run = was_complete and not changes_since(replacement, recipe, fingerprints)
    PartialState().wait_for_everyone()  # no process looks later, while the first one changes it
    if training.process_index == 0:
        open_folder(final)
    if is_this_run:
        sys.stdout.write(f"{final} had been trained to its end, and is in place now.\n")
        return None
    if was_complete:
        PartialState().wait_for_everyone()  # until it is in place
    folder = RunFolder(final, inputs.recipe.overwrite)
    checkpoint = last_checkpoint(folder.path)
    if checkpoint is not None:
        check_continuation(folder.path, recipe, fingerprints)
    return TrainingRun(
        stage=inputs.stage,
        folder=folder,
        recipe=recipe,
        inputs=fingerprints,
        rows={split: rows.counts() for split, rows in inputs.rows.items()},
        checkpoint=checkpoint,
        push_to_hub=training.push_to_hub,
    )


def train_and_save(trainer: Trainer, run: TrainingRun, review: Review | None = None) -> None:
    """Train, from the run's checkpoint if it has one, and write the run folder.

    At the end the trainer measures its loss on its evaluation rows, unless there is a review.

    Args:
        review: Called on the first process with the folder of the saved adapter. It returns
            metrics of held-out data, whose names begin with `eval_`.
    """
    try:
        _train_and_save(trainer, run, review)
    except (Exception, KeyboardInterrupt) as error:
        error.add_note(_how_to_go_on(run.folder))
        raise


def push_if_asked(run: TrainingRun, training: TrainingArguments) -> None:
    """Push the finished run to the Hub, from the first process, if its recipe says `push_to_hub`.

    The folder is complete by then, so that a failed push loses nothing.
    """
    if run.push_to_hub and training.process_index == 0:
        folder = run.folder.final
        repo_id = training.hub_model_id or repo_name(folder)
        private = training.hub_private_repo is not False
        url = push(folder, repo_id, private, training.hub_token)
        logging.getLogger(__name__).warning("Pushed %s to %s", folder, url)


def _train_and_save(trainer: Trainer, run: TrainingRun, review: Review | None) -> None:
    folder = run.folder.path
    trainer.add_callback(_LogFile(workspace(folder) / f"training_{run.stage}.log"))
    trainer.add_callback(WholeCheckpoints())
    train_in_float32(trainer)
    if trainer.is_world_process_zero():
        run.folder.begin(run.recipe, run.inputs)
    metrics = train(trainer, run.checkpoint)
    if review is None and trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    if review is not None:
        held_out = review(folder)
        trainer.log(held_out)
        metrics |= held_out
    trainer.save_metrics("all", metrics, combined=False)
    trainer.save_state()
    training_curves_figure({run.stage: trainer.state.log_history}, folder / "training_curves.png")
    record = _record(trainer.args, run, metrics)
    write_card(folder, record, run.folder.final.name)
    run.folder.finish(record)


def _record(
    training: TrainingArguments, run: TrainingRun, metrics: dict[str, float]
) -> dict[str, object]:
    folder = run.folder.path
    adapter = read_adapter(folder)
    # The duration is that of all sessions.
    seconds = time.monotonic() - run.started + seconds_trained(run.checkpoint)
    return run_record(
        run.stage,
        run.recipe,
        base_model=adapter.base.name,
        base_revision=adapter.base.revision,
        base_precision=str(adapter.precision),
        dataset_fingerprint=run.inputs.get("dataset_name"),
        inputs=run.inputs,
        fingerprint=adapter.fingerprint,
        rows=run.rows,
        seed=training.seed,
        processes=training.world_size,
        duration_seconds=round(seconds, 1),
        peak_memory_gb=round(peak_memory_gb(), 2),
        metrics=metrics,
    )


def _how_to_go_on(folder: RunFolder) -> str:
    """Say what a run that was cut off leaves, and how to go on."""
    if folder.path == folder.final and (folder.path / RECORD).exists():
        return f"{folder.final} is complete."
    checkpoint = last_checkpoint(folder.path)
    begun = f"goes on from {checkpoint}" if checkpoint else "begins again: no checkpoint is there"
    old = f" The finished run in {folder.final} is as it was." if folder.replaces else ""
    return f"The same command {begun}.{old}"


class _LogFile(TrainerCallback):
    """Append what the trainer logs to a file, one line a log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"{stamp} step {state.global_step}/{state.max_steps} {logs}\n")
