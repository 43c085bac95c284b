"""Resume training so that its results and its report equal those of an uninterrupted run."""

import time
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlhf_recipes.errors import RecipeError

TOKEN_COUNTER = "_total_train_tokens"
"""Attribute in which TRL counts the trained tokens; it is not saved in checkpoints."""

COUNTERS = ("num_tokens", "episode")
"""Logged counts that grow over the whole run."""

Metrics = dict[str, float]


def train(trainer: Trainer, checkpoint: str | None) -> Metrics:
    """Train from a checkpoint, or from the start if None, and return the whole run's metrics.

    A run that was killed after its last step is not trained further.
    """
    trainer.add_callback(ContinuousLog(trainer))
    if checkpoint is None:
        metrics = trainer.train().metrics
    else:
        state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        if state.global_step < state.max_steps:
            metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        else:
            # The Trainer checks for the end only after a step, and would train one too many. With
            # no epoch to train, it loads the checkpoint and stops.
            trainer.args.num_train_epochs, trainer.args.max_steps = 0, -1
            metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
            trainer.state.max_steps = state.max_steps
    metrics |= whole_run_metrics(trainer)
    trainer.state.log_history[-1].update(metrics)  # the Trainer's cover the last session
    return metrics


def seconds_trained(checkpoint: str | None) -> float:
    """Return the seconds that a run had trained at a checkpoint, in all its sessions."""
    if checkpoint is None:
        return 0.0
    history = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").log_history
    return float(history[-1].get("seconds", 0.0)) if history else 0.0


def whole_run_metrics(trainer: Trainer) -> Metrics:
    """Return metrics of all sessions of a run, from its log history."""
    history, steps = trainer.state.log_history, trainer.state.global_step
    seconds = history[-1]["seconds"]
    losses, logged = 0.0, 0.0
    for entry in history:
        if "loss" in entry:
            losses += entry["loss"] * (entry["step"] - logged)
            logged = entry["step"]
    examples = (trainer.state.epoch or 0.0) * len(trainer.train_dataset)  # type: ignore[arg-type]
    counts = {
        name: max(entry[name] for entry in history if name in entry)
        for name in COUNTERS
        if any(name in entry for entry in history)
    }
    return {
        "train_loss": losses / max(logged, 1),
        "train_runtime": round(seconds, 4),
        "train_samples_per_second": round(examples / seconds, 3),
        "train_steps_per_second": round(steps / seconds, 3),
        **counts,
    }


class ContinuousLog(TrainerCallback):
    """Log at every checkpoint, so that no metric is lost if the process is killed.

    The Trainer and TRL average their metrics in memory between logs. Each log also gets `seconds`,
    the time that the run has trained in all its sessions.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.began = time.monotonic()
        self.earlier = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Restore the counts of time and tokens from the checkpoint's log."""
        self.began = time.monotonic()
        last = state.log_history[-1] if state.log_history else {}
        self.earlier = last.get("seconds", 0.0)
        if hasattr(self.trainer, TOKEN_COUNTER):
            tokens = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
            setattr(self.trainer, TOKEN_COUNTER, tokens[-1] if tokens else 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log before each checkpoint or evaluation (which may save one), and at the end."""
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True

    on_epoch_end = on_step_end

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the time to the new log entry."""
        seconds = self.earlier + time.monotonic() - self.began
        state.log_history[-1]["seconds"] = round(seconds, 3)


class WholeGenerations(TrainerCallback):
    """Make GRPO resumable: save between generations only, and restore its prompt sampler.

    TRL shuffles prompts with a generator and reuses a generation's completions for several steps,
    and saves neither in checkpoints. Between generations there are no completions to save, and the
    state of the generator is restored by one shuffle per completed epoch.
    """

    def __init__(self) -> None:
        self.due = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Repeat the shuffles of the epochs before the checkpoint."""
        epochs, left = divmod(state.global_step, _steps_per_epoch(args, train_dataloader))
        if state.global_step < state.max_steps and not _between_generations(args, left):
            raise RecipeError(
                f"The checkpoint at step {state.global_step} lies within a generation, whose "
                "completions it does not hold: training would go on with others. Delete this "
                "checkpoint to go on from an earlier one."
            )
        for _epoch in range(epochs):
            next(iter(train_dataloader.batch_sampler))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Postpone a checkpoint within a generation to the end of that generation."""
        self.due |= control.should_save
        left = state.global_step % _steps_per_epoch(args, train_dataloader)
        finished = state.global_step >= state.max_steps
        control.should_save = self.due and (finished or _between_generations(args, left))
        self.due &= not control.should_save


def _steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int:
    """Return the optimizer steps per epoch; the last may have fewer micro-batches."""
    return max(-(-len(train_dataloader) // args.gradient_accumulation_steps), 1)


def _between_generations(args: Any, step_of_epoch: int) -> bool:
    """Whether a new generation begins after this number of optimizer steps of an epoch."""
    micro_steps = step_of_epoch * args.gradient_accumulation_steps
    return bool(micro_steps % (args.steps_per_generation * args.num_iterations) == 0)
