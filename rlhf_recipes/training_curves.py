"""Training curves: the quantities in a trainer's log under common names, and a figure of them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rlhf_recipes.figure_style import color, figure

Log = Sequence[Mapping[str, Any]]
Curves = dict[str, tuple[list[float], list[float]]]

LOGGED_NAMES: dict[str, tuple[str, ...]] = {
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
"""Names under which the trainers log each quantity; the first one in a log is used.

GRPO logs KL as a mean over tokens and PPO as a sum over the completion, so these are two
quantities.
"""

VALIDATION = " (validation)"
COLUMNS = 4
SMOOTHED_FROM = 60
"""Number of logged values from which a moving average is drawn too."""


def curves(log: Log) -> Curves:
    """Return the steps and values of each quantity in a trainer's `log_history`.

    Values measured on validation data have their own key, `NAME (validation)`. Values that are
    not finite numbers are left out.
    """
    quantities: Curves = {}
    for name, aliases in LOGGED_NAMES.items():
        for prefix, suffix in (("", ""), ("eval_", VALIDATION)):
            for alias in aliases:
                points = [
                    (float(entry["step"]), float(entry[prefix + alias]))
                    for entry in log
                    if "step" in entry and _is_number(entry.get(prefix + alias))
                ]
                if points:
                    steps, values = zip(*points, strict=True)
                    quantities[name + suffix] = list(steps), list(values)
                    break
    return quantities


def training_curves_figure(log_histories: Mapping[str, Log], path: Path) -> bool:
    """Draw the curves of every run as small multiples; return False if nothing was logged.

    A single run fills a grid with all its quantities. Of several runs, each takes one row with its
    first four quantities in the order of `LOGGED_NAMES`.

    Args:
        log_histories: `log_history` of each trainer's state, by stage.
        path: Image file, not written if nothing was logged.
    """
    runs = {
        stage: quantities for stage, log in log_histories.items() if (quantities := curves(log))
    }
    if not runs:
        return False
    limit = None if len(runs) == 1 else COLUMNS
    panels = {
        stage: list(dict.fromkeys(name.removesuffix(VALIDATION) for name in quantities))[:limit]
        for stage, quantities in runs.items()
    }
    columns = min(COLUMNS, max(map(len, panels.values())))
    cells = [
        (stage, names[start : start + columns])
        for stage, names in panels.items()
        for start in range(0, len(names), columns)
    ]
    text = "Line: training, every logged step (bold: moving average, where there are many); dots: "
    text += "validation. x: optimizer step. One training seed."
    with figure(path, 3.1 * columns + 0.4, 2.05 * len(cells) + 0.6, text) as canvas:
        grid = canvas.subplots(len(cells), columns, squeeze=False)
        for row, (stage, names) in zip(grid, cells, strict=True):
            for axes in row[len(names) :]:
                axes.set_axis_off()
            for axes, name in zip(row, names, strict=False):
                _draw_panel(axes, runs[stage], name, color(stage, list(runs)))
                axes.set_title(f"{stage}: {name}", fontsize=9.5)
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _draw_panel(axes: Axes, quantities: Curves, name: str, line_color: str) -> None:
    if name in quantities:
        steps, values = quantities[name]
        many = len(steps) >= SMOOTHED_FROM
        marker = "o" if len(steps) == 1 else None
        alpha = 0.3 if many else 1
        axes.plot(steps, values, color=line_color, linewidth=1.6, alpha=alpha, marker=marker)
        if many:
            width = len(steps) // 20
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width // 2 :][: len(smooth)], smooth, color=line_color, linewidth=2)
    if name + VALIDATION in quantities:
        axes.plot(*quantities[name + VALIDATION], "o", color="#16191d", markersize=4.5, zorder=3)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.04, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
