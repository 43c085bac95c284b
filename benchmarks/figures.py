"""Draw the figures of the benchmarks, in the project's style."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from rlhf_recipes.figure_style import MUTED, figure

OURS, THEIRS = "#0072B2", "#999999"
LABELS = {"ours": "this project", "theirs": "stock"}


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the figure that belongs to the stage of a benchmark's record."""
    if record["stage"] == "growth":
        growth_figure(record, path)
    elif record["stage"] == "startup":
        startup_figure(record, path)
    else:
        compared_figure(record, path)


def _caption(record: dict[str, Any], text: str) -> str:
    machine = record["machine"]
    return f"{text} {machine['cores']} cores of {machine['processor']}."


def compared_figure(record: dict[str, Any], path: Path) -> None:
    """Draw time and peak memory, one row per case and side; dots are runs."""
    cases = record["cases"]
    peer, unit = cases[0]["peer"], cases[0]["unit"]
    text = _caption(record, "Bars: medians; dots: runs, in turn. float32.")
    with figure(path, 9.5, 1.7 + 0.8 * len(cases), text) as canvas:
        left, right = canvas.subplots(1, 2, sharey=True)
        for position, case in enumerate(cases):
            for side, tint, offset in (("ours", OURS, -0.2), ("theirs", THEIRS, 0.2)):
                y, result = position + offset, case[side]
                seconds = result["seconds_by_run"]
                left.barh(y, result["seconds"], 0.36, color=tint)
                left.plot(seconds, [y] * len(seconds), "o", color="#16191d", markersize=3.5)
                right.barh(y, result["peak_gb"], 0.36, color=tint)
                _label(left, result["seconds"], max(seconds), y, f"{result['seconds']:.3g} s")
                _label(
                    right, result["peak_gb"], result["peak_gb"], y, f"{result['peak_gb']:.2f} GB"
                )
        speedups = [f"{case['name']}\n{case['speedup']['median']:.2f}x the speed" for case in cases]
        left.set_yticks(range(len(cases)), speedups)
        left.set_ylim(len(cases) - 0.5, -0.5)
        left.set_title(f"seconds per {unit}")
        right.set_title("peak memory (GB)")
        for axes in (left, right):
            axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
        handles = [left.patches[0], left.patches[1]]
        canvas.legend(handles, ["this project", peer], loc="outside upper left", ncols=2)


def _label(axes: Axes, value: float, end: float, y: float, text: str) -> None:
    axes.annotate(
        text, (end, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=MUTED
    )


def growth_figure(record: dict[str, Any], path: Path) -> None:
    """Draw seconds per unit over a size, one panel per curve; lines join medians, dots are runs."""
    curves = record["curves"]
    text = _caption(
        record, "Forward and backward pass of given tokens. Lines: medians; dots: runs. float32."
    )
    with figure(path, 5.2 * len(curves), 4.4, text) as canvas:
        for axes, curve in zip(canvas.subplots(1, len(curves)), curves, strict=True):
            sizes = [point["size"] for point in curve["points"]]
            for side, tint in (("theirs", THEIRS), ("ours", OURS)):
                medians = [point[side]["seconds"] for point in curve["points"]]
                axes.plot(sizes, medians, "-", color=tint, linewidth=1.9, label=LABELS[side])
                for point in curve["points"]:
                    runs = point[side]["seconds_by_run"]
                    axes.plot([point["size"]] * len(runs), runs, "o", color=tint, markersize=4)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.yaxis.set_major_formatter("{x:.3g}")
            axes.set_xlabel(curve["over"])
            axes.set_title(f"seconds per {curve['unit']}: {curve['name']}")
        handles, labels = axes.get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=2)


def startup_figure(record: dict[str, Any], path: Path) -> None:
    """Draw the seconds until a command answers; dots are runs."""
    cases = record["cases"]
    text = _caption(record, "Bars: medians; dots: runs.")
    with figure(path, 6.5, 1.3 + 0.36 * len(cases), text) as canvas:
        axes = canvas.subplots()
        for position, case in enumerate(cases):
            runs = case["seconds_by_run"]
            axes.barh(position, case["seconds"], 0.6, color=OURS)
            axes.plot(runs, [position] * len(runs), "o", color="#16191d", markersize=3.5)
            _label(axes, case["seconds"], max(runs), position, f"{case['seconds']:.2f} s")
        axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
        axes.set_title("seconds until a command answers")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
