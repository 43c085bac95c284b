"""Figures of details: where KL is spent, and how reliable the reward model is."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from rlhf_recipes.evaluation.metrics.kl import KLByPosition
from rlhf_recipes.evaluation.metrics.reward_model import RewardModelQuality
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.metrics.statistics import Interval
from rlhf_recipes.evaluation.report.figures import caption, model_colors
from rlhf_recipes.evaluation.results import EvaluationResults
from rlhf_recipes.figure_style import COLORS, MUTED, figure

FEWEST = 5


def kl_figure(results: EvaluationResults, collection: Collection, path: Path) -> bool:
    """Draw KL by position and against length; return False, without a file, if none was saved."""
    spent = {m.name: results.models[m.name].kl.by_position for m in collection.finals}
    shown = {name: curve for name, curve in spent.items() if curve}
    if not shown:
        return False
    colors = model_colors(results)
    text = caption(
        collection,
        "Left: exact KL at each position, mean over the completions that reach it (five or more), "
        "band: 95% interval. Right: each completion.",
    )
    with figure(path, 10.4, 4.6, text) as canvas:
        left, right = canvas.subplots(1, 2)
        for name, curve in shown.items():
            model, tint = collection.models[name], colors[name]
            _by_position(left, curve, tint, name)
            lengths, kl = model.values("n_tokens").ravel(), model.values("kl").ravel()
            right.plot(lengths, kl, "o", color=tint, markersize=3, alpha=0.3, markeredgewidth=0)
        left.set_ylim(bottom=0)
        left.set_title("KL by position")
        left.set_xlabel("token position in the completion")
        left.set_ylabel("nats per token")
        right.set_ylim(bottom=0)
        right.set_title("KL against length")
        right.set_xlabel("completion length (tokens)")
        right.set_ylabel("nats per completion")
        handles, labels = left.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return True


def _by_position(axes: Axes, curve: KLByPosition, tint: str, name: str) -> None:
    shown = [i for i, n in enumerate(curve.n) if n >= FEWEST]
    positions = [i + 1 for i in shown]
    ends = np.array([curve.ci[i] for i in shown]).reshape(-1, 2)
    axes.plot(positions, [curve.kl[i] for i in shown], color=tint, linewidth=1.8, label=name)
    axes.fill_between(positions, ends[:, 0], ends[:, 1], color=tint, alpha=0.18, linewidth=0)


def reward_model_figure(model: RewardModelQuality, path: Path) -> None:
    """Draw reliability, accuracy by margin, and accuracy by length of the chosen completion."""
    text = (
        "Left: fraction right against claimed probability σ(|margin|), folded; on the line, claims "
        "hold; numbers: pairs. Right: by length of the chosen text. "
        f"Bars: 95% intervals. n = {model.n} held-out pairs."
    )
    tint = COLORS["reward"]
    with figure(path, 7.6, 4.2, text) as canvas:
        left, right = canvas.subplots(1, 2)
        left.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for row in model.calibration.reliability:
            _bar(left, row.claimed, row.right, row.ci, tint)
            left.annotate(str(row.n), (row.claimed, 0.03), ha="center", fontsize=7.5, color=MUTED)
        left.set_title("reliability")
        left.set_xlabel("claimed probability")
        left.set_ylabel("fraction right")
        left.set_xlim(0.48, 1.02)
        sides = model.length_bias.accuracy
        for position, accuracy in enumerate(sides.values()):
            if accuracy:
                _bar(right, position, accuracy.value, accuracy.ci, tint)
        right.set_title("accuracy by length")
        right.set_xticks(range(len(sides)), [name.replace("_", " ") for name in sides])
        right.set_xlim(-0.6, 1.6)
        for axes in (left, right):
            axes.axhline(0.5, color="#ced4da", linewidth=1, zorder=1)
            axes.set_ylim(-0.02, 1.02)


def _bar(axes: Axes, x: float, y: float, ends: Interval, tint: str) -> None:
    axes.plot([x, x], ends, color=tint, linewidth=1.8, alpha=0.7, solid_capstyle="round")
    axes.plot(x, y, "o", color=tint, markersize=7)
