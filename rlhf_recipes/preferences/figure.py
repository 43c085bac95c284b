"""Draw the figure of a prepared dataset from dataset_stats.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

# Okabe and Ito's palette, which is safe for all common forms of color blindness.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#E69F00", "#009E73", "#5F6368"
SPLIT_COLORS = {"train": BLUE, "validation": ORANGE}
MAX_TURNS = 8


def distribution_figure(statistics: Mapping[str, Any], path: Path) -> None:
    """Draw lengths, length gaps, turns and dropped rows, and write the figure to `path`.

    Args:
        statistics: The contents of dataset_stats.json.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.12)
    figure = Figure(figsize=(11, 7.6), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    splits = statistics["splits"]
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(length=0, colors=GRAY)
    _draw_lengths(axes[0, 0], splits, statistics["length_unit"], statistics["max_length"])
    _draw_gaps(axes[0, 1], splits["train"]["length_gap"], statistics["length_unit"])
    _draw_turns(axes[1, 0], splits)
    _draw_dropped(axes[1, 1], statistics)
    sizes = ", ".join(f"{stats['pairs']:,} {split}" for split, stats in splits.items())
    figure.suptitle(
        f"{Path(statistics['dataset_name']).name}: {sizes} pairs",
        fontsize=14,
        fontweight="bold",
        x=0.01,
        ha="left",
    )
    figure.legend(
        handles=[Patch(color=color, label=split) for split, color in SPLIT_COLORS.items()],
        loc="upper right",
        ncols=2,
        frameon=False,
    )
    figure.savefig(path)


def _title(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.set_xlabel(xlabel, color=GRAY)
    ax.set_ylabel(ylabel, color=GRAY)


def _draw_lengths(ax: Axes, splits: Mapping[str, Any], unit: str, limit: int | None) -> None:
    for split, stats in splits.items():
        longest = stats["lengths"]["longest"]
        histogram = longest["histogram"]
        percent = 100 * np.array(histogram["counts"]) / stats["pairs"]
        color = SPLIT_COLORS[split]
        if split == "train":
            ax.stairs(percent, histogram["edges"], color=color, fill=True, alpha=0.2)
        ax.stairs(percent, histogram["edges"], color=color, linewidth=1.8)
        ax.axvline(longest["median"], color=color, linestyle=":", linewidth=1.4)
    if limit is not None:
        ax.axvline(limit, color="black", linewidth=1.2)
        ax.text(
            limit,
            1.0,
            f"max_length {limit:,} ",
            transform=ax.get_xaxis_transform(),
            ha="right",
            va="top",
        )
    ax.set_xlim(left=0)
    ax.margins(y=0.15)
    _title(ax, "Prompt plus longer completion (dotted: median)", unit, "% of pairs")


def _draw_gaps(ax: Axes, gap: Mapping[str, Any], unit: str) -> None:
    edges, counts = np.array(gap["histogram"]["edges"]), gap["histogram"]["counts"]
    colors = [GREEN if left >= 0 else GRAY for left in edges[:-1]]
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colors, edgecolor="white")
    ax.axvline(0, color="black", linewidth=1.2)
    ax.text(
        0.02,
        0.95,
        f"rejected longer\n{gap['rejected_longer']:.0%}",
        transform=ax.transAxes,
        color=GRAY,
        va="top",
        fontweight="bold",
    )
    ax.text(
        0.98,
        0.95,
        f"chosen longer\n{gap['chosen_longer']:.0%}",
        transform=ax.transAxes,
        color=GREEN,
        va="top",
        ha="right",
        fontweight="bold",
    )
    title = f"Length of chosen minus rejected (train, median {gap['median']:+g})"
    _title(ax, title, unit, "pairs")


def _draw_turns(ax: Axes, splits: Mapping[str, Any]) -> None:
    for offset, (split, stats) in zip((-0.2, 0.2), splits.items(), strict=True):
        counts = np.zeros(MAX_TURNS)
        for turns, count in stats["turns"].items():
            counts[min(int(turns), MAX_TURNS) - 1] += count
        bars = np.arange(1, MAX_TURNS + 1) + offset
        ax.bar(bars, 100 * counts / stats["pairs"], 0.38, color=SPLIT_COLORS[split])
    labels = [*map(str, range(1, MAX_TURNS)), f"{MAX_TURNS}+"]
    ax.set_xticks(range(1, MAX_TURNS + 1), labels)
    _title(ax, "User turns", "user turns in the prompt", "% of pairs")


def _draw_dropped(ax: Axes, statistics: Mapping[str, Any]) -> None:
    dropped = {
        reason: row for reason, row in statistics["dropped"].items() if any(row["count"].values())
    } or {"none": {"count": dict.fromkeys(SPLIT_COLORS, 0)}}
    names = [reason.replace("_", " ") for reason in dropped]
    total = np.zeros(len(dropped))
    for split, color in SPLIT_COLORS.items():
        counts = np.array([reason["count"][split] for reason in dropped.values()])
        bars = ax.barh(names, counts, left=total, color=color, height=0.65)
        total += counts
    ax.bar_label(bars, [f"{count:,.0f}" for count in total], padding=5, color=GRAY)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.set_xlim(0, 1.15 * max(total.max(), 1))
    rows = sum(size["rows"] for size in statistics["sizes"].values())
    _title(ax, f"Dropped rows: {total.sum():,.0f} of {rows:,} ({total.sum() / rows:.1%})", "", "")
