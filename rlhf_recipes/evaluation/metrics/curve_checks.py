"""Automatic checks of a training curve, each a stated rule on the logged values."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rlhf_recipes.evaluation.metrics.statistics import SEED, Array, Interval, percentiles

DRAWS = 999
FEWEST = 8
UNDETECTED = "none detectable"

Curves = Mapping[str, tuple[list[float], list[float]]]


class CurveCheck(NamedTuple):
    """A check of one quantity, in words and as what is held against a threshold."""

    quantity: str
    check: str
    text: str
    threshold: float
    measure: Callable[[Array], float | None]
    below: bool = False


def curve_checks(curves: Curves) -> list[dict[str, Any]]:
    """What is remarkable about a run: its trend at the end, and the checks whose curve was logged.

    Each says its rule, the value it looked at, and whether it is raised; null where too few values
    were logged. The trend is that of the reward, else the margin, else the loss.
    """
    led = [name for name in ("reward", "margin", "loss") if name in curves][:1]
    found = [_trend(name, *(np.array(side) for side in curves[name])) for name in led]
    for rule in CURVE_CHECKS:
        if rule.quantity in curves:
            value = rule.measure(np.array(curves[rule.quantity][1]))
            over = None if value is None else value - rule.threshold
            found.append(
                {
                    "check": rule.check,
                    "quantity": rule.quantity,
                    "rule": rule.text,
                    "value": value,
                    "threshold": rule.threshold,
                    "raised": None if over is None else over < 0 if rule.below else over > 0,
                }
            )
    return found


def slope_interval(x: Array, y: Array) -> tuple[float, Interval]:
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
    return slope, percentiles(slope + residuals[drawn] @ weights)


def _trend(name: str, x: Array, y: Array) -> dict[str, Any]:
    """Rising, falling or neither detectably over the last quarter, at least eight values."""
    facts: dict[str, Any] = {
        "check": "trend",
        "quantity": name,
        "rule": f"slope over the last quarter, at least {FEWEST} values; interval by block "
        "bootstrap; no trend is detectable where it covers 0",
    }
    if len(y) < FEWEST:
        return facts | dict.fromkeys(("value", "ci", "outcome", "raised"))
    last = max(FEWEST, len(y) // 4)
    slope, ci = slope_interval(x[-last:], y[-last:])
    # Rounding leaves the slope of a constant at the last bits.
    still = 1e-12 * (float(np.abs(y).max()) or 1.0)
    outcome = "rising" if ci.low > still else "falling" if ci.high < -still else UNDETECTED
    # A run that still learns was stopped too early; a loss learns by falling.
    learning = "falling" if name == "loss" else "rising"
    return facts | {"value": slope, "ci": ci, "outcome": outcome, "raised": outcome == learning}


def _last_quarter(values: Array) -> float:
    return float(values[-max(1, len(values) // 4) :].mean())


def _over_quarter_before(values: Array) -> float | None:
    return _ratio(values, np.array_split(values, 4)[2])


def _over_first_tenth(values: Array) -> float | None:
    return _ratio(values, values[: max(1, len(values) // 10)])


def _ratio(values: Array, before: Array) -> float | None:
    if len(values) < FEWEST or before.mean() <= 0:
        return None
    return float(np.array_split(values, 4)[3].mean() / before.mean())


_KL_RULE = "mean of the last quarter over twice that of the quarter before"
CURVE_CHECKS = (
    CurveCheck("KL per response", "KL runaway", _KL_RULE, 2.0, _over_quarter_before),
    CurveCheck("KL per token", "KL runaway", _KL_RULE, 2.0, _over_quarter_before),
    CurveCheck(
        "entropy",
        "entropy collapse",
        "mean of the last quarter under 20% of that of the first tenth",
        0.2,
        _over_first_tenth,
        below=True,
    ),
    CurveCheck(
        "length (tokens)",
        "length growth",
        "mean of the last quarter over 1.5 times that of the first tenth",
        1.5,
        _over_first_tenth,
    ),
    CurveCheck(
        "groups without signal",
        "no signal",
        "over half of the groups have equal rewards, in the mean of the run",
        0.5,
        lambda values: float(values.mean()),
    ),
    CurveCheck(
        "cut off at the limit",
        "cut off",
        "over 30% of the responses of the last quarter were cut off at the length limit",
        0.3,
        _last_quarter,
    ),
)
