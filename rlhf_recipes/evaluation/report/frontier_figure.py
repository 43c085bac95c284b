"""pareto_frontier.png: reward gained over base against √KL, one panel per metric."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.report.figures import MARKERS, caption, model_colors
from rlhf_recipes.evaluation.results import EvaluationResults, ModelResults
from rlhf_recipes.figure_style import MUTED, figure

Point = tuple[float, float]

ERROR_TINT = 0.55


def pareto_frontier_figure(results: EvaluationResults, collection: Collection, path: Path) -> None:
    """Draw every model with both intervals, checkpoints as paths, the frontier and best of n."""
    metrics = list(reversed(collection.metrics))
    text = caption(collection, _explained(results))
    with figure(path, 5.4 * len(metrics), 5.1, text) as canvas:
        panels = list(canvas.subplots(1, len(metrics), squeeze=False)[0])
        for axes, metric in zip(panels, metrics, strict=True):
            _panel(axes, results, metric)
        panels[0].set_ylabel("reward gained over base (sd of base)")
        handles = _legend(results)
        canvas.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def _explained(results: EvaluationResults) -> str:
    parts = [
        "Bars: 95% intervals over prompts. Hollow: dominated (another has at least the reward for "
        "no more KL) in 95% of the bootstrap draws. Dashed: Pareto front of the points."
    ]
    if _runs(results.models):
        parts.append("Small: earlier checkpoints, joined in order.")
    if results.best_of_n:
        parts.append("Dotted: best of n of base by the proxy, at most this KL.")
    return " ".join(parts)


def _legend(results: EvaluationResults) -> list[Line2D]:
    colors = model_colors(results)
    names = {model.family: name for name, model in results.models.items()}
    return [
        Line2D([], [], linestyle="", marker=_marker(family), color=colors[name], label=family)
        for family, name in names.items()
    ]


def _marker(family: str) -> str:
    return MARKERS.get(family, "P")


def _place(model: ModelResults, metric: str) -> Point:
    return model.kl.sqrt, model.rewards[metric].gain.value


def _panel(axes: Axes, results: EvaluationResults, metric: str) -> None:
    models, colors = results.models, model_colors(results)
    end = max(model.kl.sqrt for model in models.values()) * 1.12 + 0.05
    for run in _runs(models):
        places = [(0.0, 0.0), *(_place(models[name], metric) for name in run)]
        axes.plot(*zip(*places, strict=True), color=colors[run[0]], linewidth=1.3, zorder=2)
    for name, model in models.items():
        small = name not in results.finals and name != "base"
        _point(axes, model, metric, colors[name], small=small)
    front = sorted(_place(models[name], metric) for name in results.frontier[metric].front)
    line = [*front, (end, front[-1][1])]
    axes.step(*zip(*line, strict=True), where="post", color=MUTED, linewidth=1, linestyle="--")
    _best_of_n(axes, results, metric, end)
    axes.update_datalim([(0.0, -0.1), (0.0, 0.1)])  # models that did not move stay a flat line
    axes.autoscale_view(scalex=False)
    axes.axhline(0, color="#ced4da", linewidth=1, zorder=1)
    axes.set_xlim(-0.04 * end, end)
    axes.set_xlabel("√KL to the reference (√nats per completion)")
    axes.set_title(f"{metric} reward")
    _kl_axis(axes, end)


def _runs(models: Mapping[str, ModelResults]) -> list[list[str]]:
    """Return the checkpoints of each run that has several, in their order."""
    runs: dict[str, list[str]] = {}
    for name, model in models.items():
        runs.setdefault(model.run, []).append(name)
    return [run for run in runs.values() if len(run) > 1]


def _point(axes: Axes, model: ModelResults, metric: str, tint: str, *, small: bool) -> None:
    x, y = _place(model, metric)
    low, high = model.rewards[metric].gain.ci
    ends, point = np.sqrt(np.clip(model.kl.ci, 0, None)), model.frontier[metric]
    filled = point is not None and not point.dominated
    axes.errorbar(
        x,
        y,
        xerr=[[max(0.0, x - ends[0])], [max(0.0, ends[1] - x)]],
        yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
        fmt=_marker(model.family),
        color=tint,
        ecolor=(tint, ERROR_TINT),
        markerfacecolor=tint if filled else "white",
        markersize=5 if small else 9,
        markeredgewidth=1.2 if small else 1.8,
        elinewidth=0.9 if small else 1.5,
        zorder=3 if small else 4,
    )


def _best_of_n(axes: Axes, results: EvaluationResults, metric: str, end: float) -> None:
    rows = [row for row in results.best_of_n if row.sqrt_kl_bound <= end]
    x, y = [row.sqrt_kl_bound for row in rows], [row.by_metric[metric].gain for row in rows]
    axes.plot(x, y, ":", color="#4d4d4d", linewidth=1.4, marker=".", zorder=2)
    for row, left, up in list(zip(rows, x, y, strict=True))[1:]:  # n = 1 is base itself
        axes.annotate(str(row.n), (left, up), (0, 5), textcoords="offset points", fontsize=7.5)


def _kl_axis(axes: Axes, end: float) -> None:
    def square(x: Any) -> Any:
        return np.sign(x) * np.square(x)

    def root(x: Any) -> Any:
        return np.sign(x) * np.sqrt(np.abs(x))

    top = axes.secondary_xaxis("top", functions=(square, root))
    steps = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, end**2)
    top.set_xticks([kl for kl in steps if 0 <= kl <= end**2])
    top.set_xlabel("KL (nats per completion)", color=MUTED)
    top.spines["top"].set_visible(False)
