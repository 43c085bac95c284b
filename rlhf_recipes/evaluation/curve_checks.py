"""Automatic checks of a training curve, each a stated rule on the logged values."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_recipes.evaluation.statistics import CONFIDENCE, SEED, Array

DRAWS = 999
FEWEST = 8
RUNAWAY = 2.0
COLLAPSED = 0.2
GREW = 1.5
NO_SIGNAL = 0.5
CUT_OFF = 0.3

Curves = Mapping[str, tuple[list[float], list[float]]]


def curve_checks(curves: Curves) -> list[dict[str, Any]]:
    """What is remarkable about a run: its trend at the end, and the checks whose curve was logged.

    Each says its rule, the value it looked at, and whether it is raised; null where too few values
    were logged. The trend is that of the reward, else the margin, else the loss.
    """
    found = []
    for name in ("reward", "margin", "loss"):
        if name in curves:
            found.append(_trend(name, *(np.array(side) for side in curves[name])))
            break
    for quantity, check, rule, threshold, measure in RULES:
        if quantity in curves:
            value = measure(np.array(curves[quantity][1]))
            found.append(
                {
                    "check": check,
                    "quantity": quantity,
                    "rule": rule,
                    "value": value,
                    "threshold": threshold,
                    "raised": None if value is None else _beyond(check, value, threshold),
                }
            )
    return found


def slope_interval(x: Array, y: Array) -> tuple[float, tuple[float, float]]:
    """Least-squares slope with a 95% interval from a moving-block bootstrap of the residuals.

    Blocks of about n^(1/3) neighbours keep the correlation of successive values. An exact line has
    a point.
    """
    n = len(x)
    centred = x - x.mean()
    weights = centred / np.square(centred).sum()
    slope = float(weights @ y)
    residuals = y - y.mean() - slope * centred
    block = math.ceil(n ** (1 / 3))
    starts = np.random.default_rng(SEED).integers(0, n - block + 1, (DRAWS, math.ceil(n / block)))
    drawn = (starts[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, :n]
    slopes = slope + residuals[drawn] @ weights
    low, high = np.quantile(slopes, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return slope, (float(low), float(high))


def _trend(name: str, x: Array, y: Array) -> dict[str, Any]:
    """Still rising, falling, or on a plateau over the last quarter, at least eight values."""
    facts: dict[str, Any] = {
        "check": "trend",
        "quantity": name,
        "rule": f"slope over the last quarter, at least {FEWEST} values; interval by block "
        "bootstrap; a plateau where it covers 0",
    }
    if len(y) < FEWEST:
        return facts | {"value": None, "ci": None, "outcome": None, "raised": None}
    last = max(FEWEST, len(y) // 4)
    slope, (low, high) = slope_interval(x[-last:], y[-last:])
    # Rounding leaves the slope of a constant at the last bits.
    still = 1e-12 * (float(np.abs(y).max()) or 1.0)
    outcome = "rising" if low > still else "falling" if high < -still else "plateau"
    # A run that still learns was stopped too early; a loss learns by falling.
    learning = "falling" if name == "loss" else "rising"
    return facts | {
        "value": slope,
        "ci": [low, high],
        "outcome": outcome,
        "raised": outcome == learning,
    }


def _beyond(check: str, value: float, threshold: float) -> bool:
    return value < threshold if check == "entropy collapse" else value > threshold


def _quarter(values: Array, which: int) -> float:
    """Mean of the first (0) to last (3) quarter."""
    return float(np.array_split(values, 4)[which].mean())


def _to_earlier(values: Array) -> float | None:
    if len(values) < FEWEST:
        return None
    before = _quarter(values, 2)
    return _quarter(values, 3) / before if before > 0 else None


def _to_start(values: Array) -> float | None:
    if len(values) < FEWEST:
        return None
    start = float(values[: max(1, len(values) // 10)].mean())
    return _quarter(values, 3) / start if start > 0 else None


def _at_end(values: Array) -> float:
    return float(values[-max(1, len(values) // 4) :].mean())


def _mean(values: Array) -> float:
    return float(values.mean())


_KL_RULE = "mean of the last quarter over twice that of the quarter before"
RULES = (
    ("KL per response", "KL runaway", _KL_RULE, RUNAWAY, _to_earlier),
    ("KL per token", "KL runaway", _KL_RULE, RUNAWAY, _to_earlier),
    (
        "entropy",
        "entropy collapse",
        "mean of the last quarter under 20% of that of the first tenth",
        COLLAPSED,
        _to_start,
    ),
    (
        "length (tokens)",
        "length growth",
        "mean of the last quarter over 1.5 times that of the first tenth",
        GREW,
        _to_start,
    ),
    (
        "groups without signal",
        "no signal",
        "over half of the groups have equal rewards, in the mean of the run",
        NO_SIGNAL,
        _mean,
    ),
    (
        "cut off at the limit",
        "cut off",
        "over 30% of the responses of the last quarter were cut off at the length limit",
        CUT_OFF,
        _at_end,
    ),
)
