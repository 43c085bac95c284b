"""Resume training so that it ends, and is reported, as if it had never been cut off."""

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
"""TRL's count of the tokens trained on, which it keeps in no checkpoint."""

COUNTERS = ("num_tokens", "episode")
"""Logged counts that grow over the whole run."""

Metrics = dict[str, float]


def train(trainer: Trainer, checkpoint: str | None) -> Metrics:
    """Train from a checkpoint, or from the start where it is None; the whole run's metrics.

    A run that was killed after its last step has nothing left to train.
    """
    trainer.add_callback(ContinuousLog(trainer))
    if checkpoint is None:
        metrics = trainer.train().metrics
    else:
        state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        if state.global_step < state.max_steps:
            metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        else:
            # The Trainer looks for its end after a step, so that it would train one too many. With
            # no epoch to train it loads the checkpoint and stops.
            trainer.args.num_train_epochs, trainer.args.max_steps = 0, -1
            metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
            trainer.state.max_steps = state.max_steps
    metrics |= whole_run_metrics(trainer)
    trainer.state.log_history[-1].update(metrics)  # the Trainer's own covers the last session
    return metrics


def seconds_trained(checkpoint: str | None) -> float:
    """For how long a run had trained at a checkpoint, in all its sessions."""
    if checkpoint is None:
        return 0.0
    history = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").log_history
    return float(history[-1].get("seconds", 0.0)) if history else 0.0


def whole_run_metrics(trainer: Trainer) -> Metrics:
    """Metrics of all sessions of a run, from what was logged in it."""
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
    """Log at every checkpoint, so that nothing measured is lost with a process that is killed.

    The Trainer and TRL average their metrics from log to log, in memory. Each log also says for
    how many seconds the run has trained, in all its sessions.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.began = time.monotonic()
        self.earlier = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Go on counting where the checkpoint left off."""
        self.began = time.monotonic()
        last = state.log_history[-1] if state.log_history else {}
        self.earlier = last.get("seconds", 0.0)
        if hasattr(self.trainer, TOKEN_COUNTER):
            tokens = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
            setattr(self.trainer, TOKEN_COUNTER, tokens[-1] if tokens else 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log before a checkpoint or an evaluation, which may become one, and at the end."""
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True

    on_epoch_end = on_step_end

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the time to the entry just made."""
        seconds = self.earlier + time.monotonic() - self.began
        state.log_history[-1]["seconds"] = round(seconds, 3)


class WholeGenerations(TrainerCallback):
    """Let a GRPO run be resumed: save between generations only, and bring its sampler up to date.

    TRL draws prompts from a generator and keeps a generation's completions for several steps, and
    a checkpoint has neither. Before a generation there are none to keep, and the generator follows
    from the number of epochs: it is advanced by one shuffle per epoch.
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
        """Draw the shuffles of the epochs that the checkpoint has behind it."""
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
        """Put a checkpoint that falls within a generation off to its end."""
        self.due |= control.should_save
        left = state.global_step % _steps_per_epoch(args, train_dataloader)
        finished = state.global_step >= state.max_steps
        control.should_save = self.due and (finished or _between_generations(args, left))
        self.due &= not control.should_save


def _steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int:
    """Optimizer steps per epoch, the last of which may have fewer micro-batches."""
    return max(-(-len(train_dataloader) // args.gradient_accumulation_steps), 1)


def _between_generations(args: Any, step_of_epoch: int) -> bool:
    """Whether no generation is in use after so many optimizer steps of an epoch."""
    micro_steps = step_of_epoch * args.gradient_accumulation_steps
    return bool(micro_steps % (args.steps_per_generation * args.num_iterations) == 0)
