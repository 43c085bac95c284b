"""What every training stage does around its trainer: refuse, resume, train, write the run folder.

A run folder is all that later stages know of a run. `run.json` is written last, so a folder that
has one is finished.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from rlhf_recipes.arguments import RecipeArguments, resolved_recipe
from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.hub.push import push, repo_name, write_card
from rlhf_recipes.inputs import named_inputs
from rlhf_recipes.machine import (
    end_process,
    keep_freed_memory,
    peak_memory_gb,
    use_all_cores,
)
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.dropout import turn_off_dropout
from rlhf_recipes.preferences.truncation import Rows, rows_text
from rlhf_recipes.prefix_sharing.forward import share_prefixes
from rlhf_recipes.records import run_record, workspace
from rlhf_recipes.runs.checkpoints import WholeCheckpoints, last_checkpoint
from rlhf_recipes.runs.fingerprints import model_fingerprint
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


class Run:
    """One run of a training stage, from the check of its folder to its last file.

    Args:
        stage: `reward`, `ppo`, `grpo` or `dpo`.
        recipe: Where the data is, and whether a finished run may be replaced.
        training: The trainer's configuration. Pushing is taken out of its hands: an adapter is
            pushed here, once its folder is finished, so that a failed push loses nothing.
        others: The rest of the recipe's dataclasses.
    """

    def __init__(
        self, stage: str, recipe: RecipeArguments, training: TrainingArguments, *others: Any
    ) -> None:
        self.stage = stage
        self.recipe = recipe
        self.training = training
        self.resolved = resolved_recipe(recipe, training, *others)
        self.pushes, training.push_to_hub = training.push_to_hub, False
        training.dataloader_pin_memory &= torch.cuda.is_available()
        self.inputs = named_inputs(recipe, training, *others)
        self.folder = self._open_folder()
        training.output_dir = str(self.folder.path)
        self.checkpoint = last_checkpoint(self.folder.path)
        if self.checkpoint is not None:
            check_continuation(self.folder.path, self.resolved, self.inputs)
        use_all_cores()
        keep_freed_memory()
        self.rows: dict[str, dict[str, int]] = {}
        self.started = time.monotonic()

    def _open_folder(self) -> RunFolder:
        """The folder to write, locked by the first process of a launch for all of them.

        A run whose files only had to be put in place when it was killed ends here, finished. Given
        other settings, its folder is like that of any finished run.
        """
        final = Path(str(self.training.output_dir))
        replacement = final / REPLACEMENT
        was_complete = (replacement / RECORD).is_file()
        is_this = was_complete and not changes_since(replacement, self.resolved, self.inputs)
        PartialState().wait_for_everyone()  # none looks later, while the first one changes it
        if self.training.process_index == 0:
            open_folder(final)
        if is_this:
            sys.stdout.write(f"{final} had been trained to its end, and is in place now.\n")
            raise SystemExit(0)
        if was_complete:
            PartialState().wait_for_everyone()  # until it is in place
        return RunFolder(final, self.recipe.overwrite)

    def tell(self, rows: Mapping[str, Rows], notes: Sequence[str] = ()) -> None:
        """Print which rows are used, cut or left out; run.json will say it too."""
        self.rows = {split: counts.counts() for split, counts in rows.items()}
        if self.training.process_index == 0:
            sys.stdout.write(f"{rows_text(rows, notes)}\n")
            sys.stdout.flush()

    def train_and_save(self, trainer: Trainer, review: Review | None = None) -> None:
        """Train, from the last checkpoint where there is one, and write the run folder.

        The trainer measures its loss on held-out data at the end, unless a review of the saved
        model does: that returns `eval_` metrics.
        """
        try:
            self._train_and_save(trainer, review)
        except (Exception, KeyboardInterrupt) as error:
            error.add_note(self._kept())
            raise
        if self.pushes:
            folder = self.folder.final
            repo_id = self.training.hub_model_id or repo_name(folder)
            private = self.training.hub_private_repo is not False
            url = push(folder, repo_id, private, self.training.hub_token)
            logging.getLogger(__name__).warning("Pushed %s to %s", folder, url)

    def _train_and_save(self, trainer: Trainer, review: Review | None) -> None:
        folder = self.folder.path
        trainer.add_callback(_LogFile(workspace(folder) / f"training_{self.stage}.log"))
        trainer.add_callback(WholeCheckpoints(trainer.args))
        prepare_models(trainer, prefix_sharing=self.recipe.prefix_sharing)
        if trainer.is_world_process_zero():
            self.folder.begin(self.resolved, self.inputs)
        self.started -= seconds_trained(self.checkpoint)  # the duration is of all sessions
        metrics = train(trainer, self.checkpoint)
        if review is None and trainer.eval_dataset is not None:
            metrics |= trainer.evaluate()
        trainer.save_model()
        if not trainer.is_world_process_zero():
            end_process()
        if review is not None:
            held_out = review(folder)
            trainer.log(held_out)
            metrics |= held_out
        trainer.save_metrics("all", metrics, combined=False)
        trainer.save_state()
        training_curves_figure(
            {self.stage: trainer.state.log_history}, folder / "training_curves.png"
        )
        adapter = read_adapter(folder)
        record = run_record(
            self.stage,
            self.resolved,
            base_model=adapter.base.name,
            base_revision=adapter.base.revision,
            base_precision=str(adapter.precision),
            dataset_fingerprint=self.inputs.get("dataset_name"),
            inputs=self.inputs,
            fingerprint=model_fingerprint(folder),
            adapter_fingerprint=adapter.fingerprint,
            rows=self.rows,
            seed=self.training.seed,
            processes=self.training.world_size,
            duration_seconds=round(time.monotonic() - self.started, 1),
            peak_memory_gb=round(peak_memory_gb(), 2),
            metrics=metrics,
        )
        write_card(folder, record, self.folder.final.name)
        self.folder.finish(record)

    def _kept(self) -> str:
        """Say what a run that was cut off leaves, and how to go on."""
        if self.folder.path == self.folder.final and (self.folder.path / RECORD).exists():
            return f"{self.folder.final} is complete."
        checkpoint = last_checkpoint(self.folder.path)
        begun = (
            f"goes on from {checkpoint}" if checkpoint else "begins again: no checkpoint is there"
        )
        old = (
            f" The finished run in {self.folder.final} is as it was."
            if self.folder.replaces
            else ""
        )
        return f"The same command {begun}.{old}"


def prepare_models(trainer: Trainer, *, prefix_sharing: bool) -> None:
    """Turn off dropout and share prefixes in what a trainer of TRL trains, and in its reference.

    PPO's model is `Roles`, which does both itself.
    """
    models = (trainer.model, getattr(trainer, "ref_model", None))
    noisy = getattr(trainer.args, "neftune_noise_alpha", None) is not None
    if prefix_sharing and noisy:
        logging.getLogger(__name__).warning(
            "Prompts are not shared between rows: `neftune_noise_alpha` draws noise for each."
        )
    for model in models:
        if not isinstance(model, PreTrainedModel | PeftModel):
            continue
        if getattr(trainer.args, "disable_dropout", False):
            turn_off_dropout(model)
        if prefix_sharing and not noisy:
            share_prefixes(model)


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
