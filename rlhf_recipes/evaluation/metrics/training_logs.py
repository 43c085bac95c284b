"""Logs of finished training runs: their curves, and the automatic checks of these curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_recipes.evaluation.metrics.curve_checks import Checked, curve_checks
from rlhf_recipes.evaluation.metrics.typed_json import AtLeast0, Count
from rlhf_recipes.training_curves import Log, curves

Unit = Literal["episodes", "pairs", "samples"]
ORDER: tuple[str, ...] = ("sft", "reward", "ppo", "grpo", "dpo")
SAMPLE_UNITS: dict[str, Unit] = {"ppo": "episodes", "grpo": "episodes", "dpo": "pairs"}
MAX_POINTS = 200
"""Maximum number of points per curve in the results."""


@dataclass(frozen=True)
class TrainingLog:
    """A trainer's `log_history`, the samples of one step if known, and the record in run.json."""

    entries: Log
    samples_per_step: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, steps: Sequence[float]) -> list[float] | None:
        """Return the samples seen by each step; None if unknown.

        These are the episodes where all steps logged them, else steps times samples per step.
        """
        episodes = {e["step"]: e["episode"] for e in self.entries if {"step", "episode"} <= set(e)}
        if all(step in episodes for step in steps):
            return [float(episodes[step]) for step in steps]
        if self.samples_per_step is None:
            return None
        return [step * self.samples_per_step for step in steps]


@dataclass(frozen=True)
class Curve:
    """A logged quantity by optimizer step, and the samples seen by then if that is known."""

    steps: Sequence[float]
    samples: Sequence[float] | None
    values: Sequence[float]


@dataclass(frozen=True)
class TrainingCurves:
    """Curves of one training run by quantity, and their checks."""

    quantities: Mapping[str, Curve]
    checks: Sequence[Checked]


@dataclass(frozen=True)
class TrainingCost:
    """The time that training took, and the samples it saw."""

    duration_seconds: AtLeast0
    samples: Count | None
    unit: Unit


def summarize(logs: Mapping[str, TrainingLog]) -> dict[str, TrainingCurves]:
    """Return the curves of each stage, at most 200 points each, and the checks of all points."""
    summary = {}
    for stage, log in logs.items():
        if points := curves(log.entries):
            quantities = {name: _thinned(log, *curve) for name, curve in points.items()}
            summary[stage] = TrainingCurves(quantities, curve_checks(points))
    return summary


def training_costs(
    logs: Mapping[str, TrainingLog], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, TrainingCost]:
    """Return the time that training each model took and the samples it saw.

    The run of a model is the one that left the same adapter; models without one are left out.
    """
    costs = {}
    by_adapter = {log.record.get("fingerprint"): log for log in logs.values()}
    for name, model in models.items():
        log = by_adapter.get(model.get("fingerprint")) if model.get("fingerprint") else None
        if log is not None:
            steps = [float(entry["step"]) for entry in log.entries if "step" in entry]
            samples = log.samples([max(steps)]) if steps else None
            costs[name] = TrainingCost(
                duration_seconds=log.record["duration_seconds"],
                samples=int(samples[0]) if samples else None,
                unit=SAMPLE_UNITS.get(log.record["stage"], "samples"),
            )
    return costs


def _thinned(log: TrainingLog, steps: list[float], values: list[float]) -> Curve:
    indices = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
    thin = [steps[i] for i in indices]
    return Curve(thin, log.samples(thin), [values[i] for i in indices])


def read_training_logs(models_folder: Path) -> dict[str, TrainingLog]:
    """Read the log of every finished run in the folder, by stage: `ppo` for `ppo_model`."""
    paths = sorted(models_folder.glob("*/trainer_state.json"))
    stages = {path.parent.name.removesuffix("_model"): path for path in paths}
    order = sorted(stages, key=lambda stage: ((*ORDER, stage).index(stage), stage))
    return {stage: _read_log(stages[stage]) for stage in order}


def _read_log(path: Path) -> TrainingLog:
    state = json.loads(path.read_text(encoding="utf-8"))
    record_path = path.with_name("run.json")
    record = json.loads(record_path.read_text(encoding="utf-8")) if record_path.is_file() else {}
    if not (record and state.get("train_batch_size")):
        return TrainingLog(state["log_history"], record=record)
    batch = state["train_batch_size"] * record.get("processes", 1)
    accumulated = record["recipe"].get("gradient_accumulation_steps", 1)
    return TrainingLog(state["log_history"], batch * accumulated, record)
