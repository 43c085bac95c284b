"""Logs of finished training runs: their curves, and the automatic checks of these curves."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rlhf_recipes.evaluation.metrics.statistics import Array
from rlhf_recipes.evaluation.metrics.typed_json import AtLeast0, Count
from rlhf_recipes.training_curves import Log, curves

Unit = Literal["episodes", "pairs", "samples"]
ORDER: tuple[str, ...] = ("sft", "reward", "ppo", "grpo", "dpo")
SAMPLE_UNITS: dict[str, Unit] = {"ppo": "episodes", "grpo": "episodes", "dpo": "pairs"}
FEWEST = 8
"""Fewest values that a check of growth or collapse is made on."""
Curves = Mapping[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class TrainingLog:
    """A trainer's `log_history`, the samples of one step if known, and the record in run.json."""

    entries: Log
    samples_per_step: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int | None:
        """The samples seen: the logged episodes, else steps times samples per step, if known."""
        steps = [entry for entry in self.entries if "step" in entry]
        if not steps:
            return None
        last = max(steps, key=lambda entry: (float(entry["step"]), "episode" in entry))
        if "episode" in last:
            return int(last["episode"])
        return int(last["step"]) * self.samples_per_step if self.samples_per_step else None


class CurveCheck(NamedTuple):
    """A check of one quantity: its rule in words, and the measure compared with a threshold."""

    quantity: str
    check: str
    text: str
    threshold: float
    measure: Callable[[Array], float | None]
    below: bool = False


@dataclass(frozen=True)
class Checked:
    """Outcome of a check: the rule in words, the value compared, and whether it is raised.

    The last two are None where too few values were logged.
    """

    check: str
    quantity: str
    rule: str
    value: float | None
    threshold: float
    raised: bool | None


@dataclass(frozen=True)
class TrainingCurves:
    """The checks of one training run's curves."""

    checks: Sequence[Checked]


@dataclass(frozen=True)
class TrainingCost:
    """The time that training took, and the samples it saw."""

    duration_seconds: AtLeast0
    samples: Count | None
    unit: Unit


def summarize(logs: Mapping[str, TrainingLog]) -> dict[str, TrainingCurves]:
    """Check the curves of each stage that logged any."""
    by_stage = {stage: curves(log.entries) for stage, log in logs.items()}
    return {s: TrainingCurves(curve_checks(points)) for s, points in by_stage.items() if points}


def training_costs(
    logs: Mapping[str, TrainingLog], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, TrainingCost]:
    """Return the time that training each model took and the samples it saw.

    The run of a model is the one that left the same adapter; models without one are left out.
    """
    by_adapter = {log.record.get("fingerprint"): log for log in logs.values()}
    trained = {
        n: by_adapter.get(m["fingerprint"]) for n, m in models.items() if m.get("fingerprint")
    }
    return {
        name: TrainingCost(
            duration_seconds=log.record["duration_seconds"],
            samples=log.samples,
            unit=SAMPLE_UNITS.get(log.record["stage"], "samples"),
        )
        for name, log in trained.items()
        if log is not None
    }


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


def curve_checks(curves: Curves) -> list[Checked]:
    """Apply each rule whose quantity was logged."""
    results = []
    for rule in CURVE_CHECKS:
        if rule.quantity in curves:
            value = rule.measure(np.array(curves[rule.quantity][1]))
            over = None if value is None else value - rule.threshold
            raised = None if over is None else over < 0 if rule.below else over > 0
            results.append(
                Checked(rule.check, rule.quantity, rule.text, value, rule.threshold, raised)
            )
    return results


def _last_quarter(values: Array) -> float:
    return float(values[-max(1, len(values) // 4) :].mean())


def _over_quarter_before(values: Array) -> float | None:
    return _ratio(values, np.array_split(values, 4)[2])


def _over_first_tenth(values: Array) -> float | None:
    return _ratio(values, values[: max(1, len(values) // 10)])


def _ratio(values: Array, before: Array) -> float | None:
    if len(values) < FEWEST or before.mean() <= 0:
        return None
    return float(np.array_split(values, 4)[3].mean() / before.mean())


_KL_RULE = "mean of the last quarter over twice that of the quarter before"
CURVE_CHECKS = (
    CurveCheck("KL per response", "KL runaway", _KL_RULE, 2.0, _over_quarter_before),
    CurveCheck("KL per token", "KL runaway", _KL_RULE, 2.0, _over_quarter_before),
    CurveCheck(
        "entropy",
        "entropy collapse",
        "mean of the last quarter under 20% of that of the first tenth",
        0.2,
        _over_first_tenth,
        below=True,
    ),
    CurveCheck(
        "length (tokens)",
        "length growth",
        "mean of the last quarter over 1.5 times that of the first tenth",
        1.5,
        _over_first_tenth,
    ),
    CurveCheck(
        "groups without signal",
        "no signal",
        "over half of the groups have equal rewards, in the mean of the run",
        0.5,
        lambda values: float(values.mean()),
    ),
    CurveCheck(
        "cut off at the limit",
        "cut off",
        "over 30% of the responses of the last quarter were cut off at the length limit",
        0.3,
        _last_quarter,
    ),
)
