"""The figures of an evaluation. One colour and one marker per model, the same in every figure."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rlhf_recipes.evaluation.frontier import pareto_frontier
from rlhf_recipes.evaluation.samples import FIELD, Collection
from rlhf_recipes.evaluation.statistics import SEED

Results = dict[str, Any]

# Okabe and Ito's palette: told apart with any kind of colour vision.
COLOURS = {
    "base": "#4d4d4d",
    "control": "#999999",
    "reward": "#CC79A7",
    "ppo": "#D55E00",
    "grpo": "#0072B2",
    "dpo": "#009E73",
}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#000000")
MARKERS = {"base": "o", "control": "o", "ppo": "s", "grpo": "^", "dpo": "D"}
MUTED = "#5f6670"
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#30353b",
    "axes.edgecolor": "#b8bec6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e9ecef",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def colour(name: str, names: list[str]) -> str:
    """The colour of a model; models without one of their own take the others in turn."""
    others = [n for n in names if n not in COLOURS]
    return COLOURS.get(name) or OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]


@contextmanager
def figure(path: Path, width: float, height: float, caption: str) -> Iterator[Figure]:
    """A figure in the project's style with a caption below it, saved to path at the end."""
    with mpl.rc_context(STYLE):
        padding = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.02, hspace=0.02)
        canvas = Figure(figsize=(width, height), layout=padding)
        yield canvas
        lines = textwrap.fill(caption, int(width * 16.5))
        canvas.supxlabel(lines, x=0.01, ha="left", fontsize=8, color=MUTED, linespacing=1.4)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=150)


def caption(collection: Collection, text: str) -> str:
    """The text, then what every figure must say: prompts, samples, reference."""
    prompts, samples = collection.base.values("reward").shape
    each = "1 sample" if samples == 1 else f"{samples} samples"
    return f"{text} n = {prompts} prompts, {each} each; reference: base."


def win_rates_figure(results: Results, collection: Collection, path: Path) -> None:
    """Forest plot: each policy against base, policies against each other, the control."""
    rows = _forest_rows(results)
    metrics = list(reversed(collection.metrics))
    names = list(results["models"])
    text = caption(
        collection,
        "Share of prompts won, a tie one half; bars: 95% intervals; filled: excludes 50%.",
    )
    height = 1.5 + 0.36 * len(rows)
    with figure(path, 5.2 * len(metrics) + 1, height, text) as canvas:
        for axes, metric in zip(_panels(canvas, len(metrics)), metrics, strict=True):
            axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for edge in (len(results["models"]) - 1.5, len(rows) - len(results["controls"]) - 0.5):
                axes.axhline(edge, color="#e9ecef", linewidth=1)
            for position, (label, rates) in enumerate(rows):
                _forest_row(axes, position, rates[metric], colour(label.split(" ")[0], names))
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlim(0, 100)
            axes.set_xlabel("win rate (%)")
            axes.set_title(f"{metric} win rate")
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)


def _panels(canvas: Figure, columns: int) -> list[Axes]:
    return list(canvas.subplots(1, columns, squeeze=False, sharey=True)[0])


def _forest_rows(results: Results) -> list[tuple[str, Results]]:
    rows = [
        (f"{name} vs base", model["win_rate"])
        for name, model in results["models"].items()
        if name != "base"
    ]
    rows += results["pairwise"].items()
    rows += [(f"{name} vs base", each["win_rate"]) for name, each in results["controls"].items()]
    return rows


def _forest_row(axes: Axes, position: int, rate: Results, tint: str) -> None:
    value, (low, high) = 100 * rate["value"], (100 * rate["ci"][0], 100 * rate["ci"][1])
    axes.plot([low, high], [position] * 2, color=tint, linewidth=2.2, solid_capstyle="round")
    fill = tint if not low <= 50 <= high else "white"
    axes.plot(value, position, "o", color=tint, markerfacecolor=fill, markersize=7.5)
    axes.annotate(
        f"{value:.0f}  [{low:.0f}, {high:.0f}]",
        (1.02, position),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.5,
        color="#30353b",
    )


def reward_distributions_figure(results: Results, collection: Collection, path: Path) -> None:
    """Above, the distribution of each model's rewards; below, the paired differences to base."""
    metrics = list(reversed(collection.metrics))
    names = list(collection.models)
    text = caption(
        collection,
        "Above: share of samples at or below a reward. Below: difference to base per prompt; "
        "diamonds: mean with its 95% interval.",
    )
    with figure(path, 5.4 * len(metrics), 4.4 + 0.5 * len(names), text) as canvas:
        grid = canvas.subplots(
            2, len(metrics), squeeze=False, height_ratios=[3.4, 0.6 + 0.55 * (len(names) - 1)]
        )
        for column, metric in enumerate(metrics):
            above, below = grid[0][column], grid[1][column]
            for name, model in collection.models.items():
                rewards = model.values(FIELD[metric]).ravel()
                above.ecdf(rewards, color=colour(name, names), linewidth=1.9, label=name)
            above.set_title(f"{metric} reward")
            above.set_ylabel("share of samples" if column == 0 else "")
            _differences(below, results, collection, metric)
        handles, labels = grid[0][0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=len(names))


def _differences(axes: Axes, results: Results, collection: Collection, metric: str) -> None:
    names = list(collection.models)
    base = collection.base.values(FIELD[metric]).mean(axis=1)
    rng = np.random.default_rng(SEED)
    for position, model in enumerate(collection.policies):
        tint = colour(model.name, names)
        gaps = model.values(FIELD[metric]).mean(axis=1) - base
        jitter = position + rng.uniform(-0.24, 0.24, len(gaps))
        axes.plot(gaps, jitter, "o", color=tint, markersize=3.5, alpha=0.35, markeredgewidth=0)
        difference = results["models"][model.name][FIELD[metric]]["difference"]
        axes.plot(difference["ci"], [position] * 2, color="#16191d", linewidth=2.2)
        axes.plot(
            difference["mean"], position, "D", color=tint, markeredgecolor="#16191d", markersize=7
        )
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(collection.policies)), [m.name for m in collection.policies])
    axes.set_ylim(len(collection.policies) - 0.5, -0.5)
    axes.set_xlabel(f"{metric} reward minus base, same prompt")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def pareto_frontier_figure(results: Results, collection: Collection, path: Path) -> None:
    """Reward gained over base against √KL, with the frontier; dominated points are hollow."""
    metrics = list(reversed(collection.metrics))
    text = caption(
        collection,
        "Hollow: dominated (another point has at least the reward for no more KL). Bars: 95% "
        "intervals over prompts. Dashed: the frontier of the points."
        + (" Dotted: best of n of base, at most this KL." if results["best_of_n"] else ""),
    )
    with figure(path, 5.4 * len(metrics), 4.9, text) as canvas:
        panels = _panels(canvas, len(metrics))
        for axes, metric in zip(panels, metrics, strict=True):
            _frontier_panel(axes, results, metric)
        panels[0].set_ylabel("reward gained over base (sd of base)")
        names = list(results["models"])
        handles = [
            Line2D(
                [], [], linestyle="", marker=MARKERS.get(n, "P"), color=colour(n, names), label=n
            )
            for n in names
        ]
        canvas.legend(handles=handles, loc="outside upper left", ncols=len(names))


def _frontier_panel(axes: Axes, results: Results, metric: str) -> None:
    names = list(results["models"])
    points = []
    for name, model in results["models"].items():
        gain, kl = model[FIELD[metric]]["gain"], model["kl"]
        x = float(np.sqrt(max(0.0, kl["seq"])))
        points.append((x, gain["value"]))
        ends = np.sqrt(np.clip(kl["ci"], 0, None))
        tint = colour(name, names)
        axes.errorbar(
            x,
            gain["value"],
            xerr=[[max(0.0, x - ends[0])], [max(0.0, ends[1] - x)]],
            yerr=[[gain["value"] - gain["ci"][0]], [gain["ci"][1] - gain["value"]]],
            fmt=MARKERS.get(name, "P"),
            color=tint,
            markerfacecolor=tint if model["frontier"][metric]["on_front"] else "white",
            markersize=9,
            markeredgewidth=1.8,
            elinewidth=1.5,
            zorder=3,
        )
    front = sorted(points[i] for i in pareto_frontier(points))
    end = max(x for x, _ in points) * 1.12 + 0.05
    steps = [*front, (end, front[-1][1])]
    axes.step(*zip(*steps, strict=True), where="post", color=MUTED, linewidth=1, linestyle="--")
    _best_of_n_curve(axes, results, metric)
    axes.update_datalim([(0.0, -0.1), (0.0, 0.1)])  # models that did not move stay a flat line
    axes.autoscale_view(scalex=False)
    axes.axhline(0, color="#ced4da", linewidth=1, zorder=1)
    axes.set_xlim(-0.04 * end, end)
    axes.set_xlabel("√KL to the reference (√nats per response)")
    axes.set_title(f"{metric} reward")
    _kl_axis(axes, end)


def _best_of_n_curve(axes: Axes, results: Results, metric: str) -> None:
    rows = [row for row in results["best_of_n"] if metric in row]
    if not rows:
        return
    x = [row["sqrt_kl_bound"] for row in rows]
    y = [row[metric]["gain"] for row in rows]
    axes.plot(x, y, ":", color="#4d4d4d", linewidth=1.4, marker=".")
    for row, left, up in list(zip(rows, x, y, strict=True))[1:]:  # n = 1 is base itself
        axes.annotate(f"{row['n']}", (left, up), (0, 5), textcoords="offset points", fontsize=7.5)


def _kl_axis(axes: Axes, end: float) -> None:
    def square(x: Any) -> Any:
        return np.sign(x) * np.square(x)

    def root(x: Any) -> Any:
        return np.sign(x) * np.sqrt(np.abs(x))

    top = axes.secondary_xaxis("top", functions=(square, root))
    steps = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, end**2)
    top.set_xticks([kl for kl in steps if 0 <= kl <= end**2])
    top.set_xlabel("KL (nats per response)", color=MUTED)
    top.spines["top"].set_visible(False)
