"""Figures of an evaluation, with one color and one marker per model in all of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from rlhf_recipes.evaluation.metrics.claims import Claim, win_claim
from rlhf_recipes.evaluation.metrics.length_control import LengthControlled
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.metrics.statistics import SEED
from rlhf_recipes.evaluation.metrics.win_rate import WinRate, WinRates
from rlhf_recipes.evaluation.results import EvaluationResults
from rlhf_recipes.figure_style import MUTED, color, figure

Rates = Mapping[str, WinRate | LengthControlled | None]

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
