"""Figures of an evaluation, with one color and one marker per model in all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rlhf_recipes.evaluation.metrics.claims import Claim, win_claim
from rlhf_recipes.evaluation.metrics.kl import KLByPosition
from rlhf_recipes.evaluation.metrics.length_control import LengthControlled
from rlhf_recipes.evaluation.metrics.reward_model import RewardModelQuality
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.metrics.statistics import SEED, Interval
from rlhf_recipes.evaluation.metrics.win_rate import WinRate, WinRates
from rlhf_recipes.evaluation.results import EvaluationResults, ModelResults
from rlhf_recipes.figure_style import COLORS, MUTED, color, figure

Rates = Mapping[str, WinRate | LengthControlled | None]

Point = tuple[float, float]

ERROR_TINT = 0.55
FEWEST_AT_POSITION = 5
MARKERS = {"base": "o", "control": "o", "ppo": "s", "grpo": "^", "dpo": "D"}


def model_colors(results: EvaluationResults) -> dict[str, str]:
    """Return the color of each model, which is that of its family."""
    families = {name: model.family for name, model in results.models.items()}
    unique = list(dict.fromkeys(families.values()))
    return {name: color(family, unique) for name, family in families.items()}


def caption(collection: Collection, text: str) -> str:
    """Append what every caption must say: prompts, samples, reference."""
    prompts, samples = collection.base.values("reward").shape
    count = "1 completion" if samples == 1 else f"{samples} completions"
    return f"{text} {prompts} prompts, {count} of base per prompt; random draws: seed {SEED}."


def win_rates_figure(results: EvaluationResults, collection: Collection, path: Path) -> None:
    """Draw a forest plot: policies against base, at equal length and in pairs, and the controls."""
    groups = _forest_groups(results)
    rows = [row for group in groups for row in group]
    metrics = list(reversed(collection.metrics))
    colors = model_colors(results)
    text = caption(
        collection,
        "Fraction of completion pairs won, a tie one half; bars: 95% intervals; filled: off 50% "
        "by the interval and the corrected test. At equal length: logistic adjustment, on the "
        "metric that claims are made on; it has no test and is never filled.",
    )
    height = 1.6 + 0.36 * len(rows)
    with figure(path, 5.2 * len(metrics) + 1, height, text) as canvas:
        panels = canvas.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            edge = -0.5
            for group in groups[:-1]:
                edge += len(group)
                axes.axhline(edge, color="#e9ecef", linewidth=1)
            for position, (label, rates) in enumerate(rows):
                if rate := rates.get(metric):
                    tint = colors.get(label.split(" ")[0], MUTED)
                    draw_rate(axes, position, rate, tint)
            axes.set_yticks(range(len(rows)), [label for label, _ in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlim(0, 100)
            axes.set_xlabel("win rate (%)")
            axes.set_title(f"{metric} win rate")
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)


def control_rates(results: EvaluationResults) -> dict[str, WinRates]:
    """Return the win rates of the controls, by what they compare."""
    rates: dict[str, WinRates] = {}
    if again := results.controls.control:
        rates["base again vs base"] = again.win_rate
    if best := results.controls.best_of_n:
        rates[f"best of {best.n} of base vs base"] = best.win_rate
    return rates


def _forest_groups(results: EvaluationResults) -> list[list[tuple[str, Rates]]]:
    rates = {name: results.models[name].win_rate for name in results.finals}
    groups: list[list[tuple[str, Rates]]] = [
        [(f"{name} vs base", over_base.by_metric) for name, over_base in rates.items()],
        [(f"{name} at equal length", {lc.metric: lc}) for name, r in rates.items() if (lc := r.lc)],
        [(name, pair.by_metric) for name, pair in results.pairwise.items()],
        [(name, control.by_metric) for name, control in control_rates(results).items()],
    ]
    return [group for group in groups if group]


def draw_rate(axes: Axes, position: int, rate: WinRate | LengthControlled, tint: str) -> None:
    """Draw one row of the forest plot, filled where the sentences name a direction."""
    value, low, high = 100 * rate.value, 100 * rate.ci[0], 100 * rate.ci[1]
    axes.plot([low, high], [position] * 2, color=tint, linewidth=2.2, solid_capstyle="round")
    # The adjusted rate has no test of its own.
    claim = win_claim(rate) if isinstance(rate, WinRate) else Claim.UNDETECTED
    fill = tint if claim in (Claim.ABOVE, Claim.BELOW) else "white"
    axes.plot(value, position, "o", color=tint, markerfacecolor=fill, markersize=7.5)
    axes.annotate(
        f"{value:.0f}  [{low:.0f}, {high:.0f}]",
        (1.02, position),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.5,
        color="#30353b",
    )


def reward_distributions_figure(
    results: EvaluationResults, collection: Collection, path: Path
) -> None:
    """Draw the distribution of each model's rewards, and below it the differences to base."""
    metrics = list(reversed(collection.metrics))
    colors = model_colors(results)
    shown = [collection.base, *collection.finals]
    text = caption(
        collection,
        "Above: fraction of samples at or below a reward. Below: difference to base per prompt; "
        "diamonds: mean with its 95% interval.",
    )
    with figure(path, 5.4 * len(metrics), 4.4 + 0.5 * len(shown), text) as canvas:
        grid = canvas.subplots(
            2, len(metrics), squeeze=False, height_ratios=[3.4, 0.6 + 0.55 * (len(shown) - 1)]
        )
        for column, metric in enumerate(metrics):
            above, below = grid[0][column], grid[1][column]
            for model in shown:
                rewards = model.scores(metric).ravel()
                above.ecdf(rewards, color=colors[model.name], linewidth=1.9, label=model.name)
            above.set_title(f"{metric} reward")
            above.set_ylabel("fraction of samples" if column == 0 else "")
            _differences(below, results, collection, metric)
        handles, labels = grid[0][0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=len(shown))


def _differences(
    axes: Axes, results: EvaluationResults, collection: Collection, metric: str
) -> None:
    colors = model_colors(results)
    base = collection.base.scores(metric).mean(axis=1)
    rng = np.random.default_rng(SEED)
    for position, model in enumerate(collection.finals):
        tint = colors[model.name]
        gaps = model.scores(metric).mean(axis=1) - base
        jitter = position + rng.uniform(-0.24, 0.24, len(gaps))
        axes.plot(gaps, jitter, "o", color=tint, markersize=3.5, alpha=0.35, markeredgewidth=0)
        if difference := results.models[model.name].rewards[metric].difference:
            mean = difference.mean
            axes.plot(difference.ci, [position] * 2, color="#16191d", linewidth=2.2)
            axes.plot(mean, position, "D", color=tint, markeredgecolor="#16191d", markersize=7)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(collection.finals)), [m.name for m in collection.finals])
    axes.set_ylim(len(collection.finals) - 0.5, -0.5)
    axes.set_xlabel(f"{metric} reward minus base, same prompt")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


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
    shown = [i for i, n in enumerate(curve.n) if n >= FEWEST_AT_POSITION]
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
