"""The style that all figures of runs and evaluations share: palette, axes, and caption."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# The palette of Okabe and Ito, distinguishable with any form of color vision.
COLORS = {
    "base": "#4d4d4d",
    "control": "#999999",
    "reward": "#CC79A7",
    "ppo": "#D55E00",
    "grpo": "#0072B2",
    "dpo": "#009E73",
}
OTHER_COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#000000")
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


def color(name: str, names: list[str]) -> str:
    """Return the color of a model family; those without a fixed color take `OTHER_COLORS` in turn.

    Args:
        names: All families of the figure, so that each gets a color of its own.
    """
    others = [n for n in names if n not in COLORS]
    return COLORS.get(name) or OTHER_COLORS[others.index(name) % len(OTHER_COLORS)]


@contextmanager
def figure(path: Path, width: float, height: float, caption: str) -> Iterator[Figure]:
    """Open a figure in the project's style; at the end add its caption and save it to path.

    Args:
        width: In inches, as `height`.
    """
    with mpl.rc_context(STYLE):
        padding = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.02, hspace=0.02)
        canvas = Figure(figsize=(width, height), layout=padding)
        yield canvas
        lines = textwrap.fill(caption, int(width * 16.5))
        canvas.supxlabel(lines, x=0.01, ha="left", fontsize=8, color=MUTED, linespacing=1.4)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=150)
