"""Training curves of all methods on one schema of names, from the logs their trainers saved."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rlhf_recipes.evaluation.metrics.curve_checks import curve_checks
from rlhf_recipes.evaluation.report.figures import colour, figure

Log = Sequence[Mapping[str, Any]]
Curves = dict[str, tuple[list[float], list[float]]]

# What each trainer calls the same quantity; the first name found in a log is taken. GRPO logs KL
# as a mean over tokens and PPO as a sum over the response, so these are two quantities.
SCHEMA: dict[str, tuple[str, ...]] = {
    "reward": ("reward", "objective/scores"),
    "accuracy": ("accuracy", "rewards/accuracies"),
    "margin": ("margin", "rewards/margins"),
    "KL per response": ("objective/kl",),
    "KL per token": ("kl",),
    "loss": ("loss",),
    "entropy": ("entropy", "policy/entropy_avg"),
    "length (tokens)": ("completions/mean_length",),
    "gradient norm": ("grad_norm",),
    "value loss": ("loss/value_avg",),
    "clipped ratios": ("clip_ratio/region_mean", "policy/clipfrac_avg"),
    "cut off at the limit": ("completions/clipped_ratio",),
    "groups without signal": ("frac_reward_zero_std",),
}
ORDER: tuple[str, ...] = ("reward", "ppo", "grpo", "dpo")
SAMPLED = {"ppo": "episodes", "grpo": "episodes", "dpo": "pairs"}
HELD_OUT = " (validation)"
COLUMNS = 4
SMOOTHED_FROM = 60
THINNED_TO = 200


@dataclass(frozen=True)
class Run:
    """A training run's log, its run.json, and the samples of one step, where they are known."""

    log: Log
    samples_per_step: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, steps: Sequence[float]) -> list[float] | None:
        """Return the samples seen by each step: logged episodes, else steps times batch."""
        episodes = {e["step"]: e["episode"] for e in self.log if "step" in e and "episode" in e}
        if all(step in episodes for step in steps):
            return [float(episodes[step]) for step in steps]
        if self.samples_per_step is None:
            return None
        return [step * self.samples_per_step for step in steps]


def summarise(runs: Mapping[str, Run]) -> dict[str, Any]:
    """Return per stage its curves, thinned to 200 points each, and the checks of all points."""
    summary: dict[str, Any] = {}
    for stage, run in runs.items():
        if drawn := curves(run.log):
            quantities = {name: _thinned(run, *points) for name, points in drawn.items()}
            summary[stage] = {"quantities": quantities, "checks": curve_checks(drawn)}
    return summary


def training_costs(
    runs: Mapping[str, Run], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the time that training each model took and the samples it saw.

    A model's run is the one that left the same adapter: models without one here are left out.
    """
    costs: dict[str, Any] = {}
    by_adapter = {run.record.get("adapter_fingerprint"): run for run in runs.values()}
    for name, model in models.items():
        run = by_adapter.get(model.get("fingerprint")) if model.get("fingerprint") else None
        if run is not None:
            steps = [float(entry["step"]) for entry in run.log if "step" in entry]
            samples = run.samples([max(steps)]) if steps else None
            costs[name] = {
                "duration_seconds": run.record["duration_seconds"],
                "samples": int(samples[0]) if samples else None,
                "unit": SAMPLED.get(run.record["stage"], "samples"),
            }
    return costs


def _thinned(run: Run, steps: list[float], values: list[float]) -> dict[str, Any]:
    kept = np.unique(np.linspace(0, len(steps) - 1, THINNED_TO).round().astype(int))
    thin = [steps[i] for i in kept]
    return {"steps": thin, "samples": run.samples(thin), "values": [values[i] for i in kept]}


def curves(log: Log) -> Curves:
    """Steps and values of each quantity of the schema in a trainer's log_history.

    Values measured on held-out data have their own key, `NAME (validation)`. Entries that are
    not finite numbers are left out.
    """
    found: Curves = {}
    for name, aliases in SCHEMA.items():
        for prefix, suffix in (("", ""), ("eval_", HELD_OUT)):
            for alias in aliases:
                points = [
                    (float(entry["step"]), float(entry[prefix + alias]))
                    for entry in log
                    if "step" in entry and _is_number(entry.get(prefix + alias))
                ]
                if points:
                    steps, values = zip(*points, strict=True)
                    found[name + suffix] = list(steps), list(values)
                    break
    return found


def read_runs(models_folder: Path) -> dict[str, Run]:
    """Every finished run in the folder, by stage: `ppo` for `ppo_model`."""
    paths = sorted(models_folder.glob("*/trainer_state.json"))
    stages = {path.parent.name.removesuffix("_model"): path for path in paths}
    order = sorted(stages, key=lambda stage: ((*ORDER, stage).index(stage), stage))
    return {stage: _read_run(stages[stage]) for stage in order}


def _read_run(path: Path) -> Run:
    state = json.loads(path.read_text(encoding="utf-8"))
    record = path.with_name("run.json")
    run = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if not (run and state.get("train_batch_size")):
        return Run(state["log_history"], record=run)
    batch = state["train_batch_size"] * run.get("processes", 1)
    accumulated = run["recipe"].get("gradient_accumulation_steps", 1)
    return Run(state["log_history"], batch * accumulated, run)


def training_curves_figure(log_histories: Mapping[str, Log], path: Path) -> bool:
    """Draw every run's curves as small multiples; False, and no file, if nothing was logged.

    One run fills a grid with all it logged. Several take a row each, with the first four
    quantities of the schema that they logged.

    Args:
        log_histories: `log_history` of the trainer's state, by method.
    """
    found = {method: drawn for method, log in log_histories.items() if (drawn := curves(log))}
    if not found:
        return False
    most = None if len(found) == 1 else COLUMNS
    panels = {
        method: list(dict.fromkeys(name.removesuffix(HELD_OUT) for name in drawn))[:most]
        for method, drawn in found.items()
    }
    columns = min(COLUMNS, max(map(len, panels.values())))
    cells = [
        (method, names[start : start + columns])
        for method, names in panels.items()
        for start in range(0, len(names), columns)
    ]
    text = "Line: training, every logged step (bold: moving average, where there are many); dots: "
    text += "validation. x: optimiser step. One training seed."
    with figure(path, 3.1 * columns + 0.4, 2.05 * len(cells) + 0.6, text) as canvas:
        grid = canvas.subplots(len(cells), columns, squeeze=False)
        for row, (method, names) in zip(grid, cells, strict=True):
            for axes in row[len(names) :]:
                axes.set_axis_off()
            for axes, name in zip(row, names, strict=False):
                _panel(axes, found[method], name, colour(method, list(found)))
                axes.set_title(f"{method}: {name}", fontsize=9.5)
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _panel(axes: Axes, drawn: Curves, name: str, tint: str) -> None:
    if name in drawn:
        steps, values = drawn[name]
        many = len(steps) >= SMOOTHED_FROM
        lone = "o" if len(steps) == 1 else None
        axes.plot(steps, values, color=tint, linewidth=1.6, alpha=0.3 if many else 1, marker=lone)
        if many:
            width = len(steps) // 20
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width // 2 :][: len(smooth)], smooth, color=tint, linewidth=2)
    if name + HELD_OUT in drawn:
        axes.plot(*drawn[name + HELD_OUT], "o", color="#16191d", markersize=4.5, zorder=3)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.04, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
