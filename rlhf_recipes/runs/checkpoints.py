"""Write checkpoints with a manifest, and find the newest one that is whole."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from rlhf_recipes.records import flush_to_disk, write_json

MANIFEST = "manifest.json"
"""The file of a checkpoint written last, with the size and SHA-256 of each other file."""

OPTIMIZER_STATES = ("optimizer", "global_step")
"""Prefixes of the files with the state of the optimizer, as torch and DeepSpeed write it."""

log = logging.getLogger(__name__)


class WholeCheckpoints(TrainerCallback):
    """Write the manifest of each checkpoint, and only then delete older checkpoints.

    The Trainer would delete them before its callbacks see the new one. This callback takes
    `save_total_limit` over from it when training begins.
    """

    def __init__(self) -> None:
        self.limit: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take `save_total_limit` over from the Trainer."""
        self.limit, args.save_total_limit = args.save_total_limit, None

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        PartialState().wait_for_everyone()  # each process has written its own files
        if args.should_save:
            folder = Path(str(args.output_dir))
            write_manifest(folder / f"checkpoint-{state.global_step}")
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.limit,
                best_model_checkpoint=state.best_model_checkpoint,
                use_mtime=True,
            )


def write_manifest(checkpoint: Path) -> None:
    """Flush the files of a checkpoint to disk, then write their sizes and hashes."""
    for path in (checkpoint, *(p for p in checkpoint.rglob("*") if p.is_dir())):
        flush_to_disk(path)
    files = {
        str(path.relative_to(checkpoint)): _size_and_digest(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(checkpoint / MANIFEST, files)


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint of a run folder, or None.

    Damaged checkpoints are skipped, each with a sentence in the log.
    """
    saved = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    skipped = []
    whole = None
    for path in sorted(saved, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        damage = what_is_damaged(path)
        if damage is None:
            whole = str(path)
            break
        skipped.append(damage)
    if skipped and PartialState().is_main_process:
        begin = f"Training goes on from {whole}." if whole else "Training starts over."
        log.warning("%s %s", " ".join(skipped), begin)
    return whole


def what_is_damaged(checkpoint: Path) -> str | None:
    """Return a sentence on why training cannot resume from a checkpoint; None if it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{checkpoint} has no {MANIFEST}: it was cut off while it was written."
    except ValueError as error:
        return f"{checkpoint / MANIFEST} is damaged ({error})."
    if not any(name.startswith(OPTIMIZER_STATES) for name in files):
        return f"{checkpoint} holds no optimizer state (`save_only_model`)."
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing."
        if path.stat().st_size != expected[0]:
            return f"{path} is damaged: it has {path.stat().st_size} bytes, and had {expected[0]}."
        if _size_and_digest(path) != expected:
            return f"{path} is damaged: its content is not what was written."
    return None


def _size_and_digest(path: Path) -> list[int | str]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
