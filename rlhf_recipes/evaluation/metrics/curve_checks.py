"""Automatic checks of a training curve, each a stated rule on the logged values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhf_recipes.evaluation.metrics.statistics import Array

FEWEST = 8

Curves = Mapping[str, tuple[list[float], list[float]]]


class CurveCheck(NamedTuple):
    """A check of one quantity: its rule in words, and the measure compared with a threshold."""

    quantity: str
    check: str
    text: str
    threshold: float
    measure: Callable[[Array], float | None]
    below: bool = False


@dataclass(frozen=True)
class Checked:
    """Outcome of a check: the rule in words, the value compared, and whether it is raised.

    The last two are None where too few values were logged.
    """

    check: str
    quantity: str
    rule: str
    value: float | None
    threshold: float
    raised: bool | None


def curve_checks(curves: Curves) -> list[Checked]:
    """Apply each rule whose quantity was logged."""
    results = []
    for rule in CURVE_CHECKS:
        if rule.quantity in curves:
            value = rule.measure(np.array(curves[rule.quantity][1]))
            over = None if value is None else value - rule.threshold
            raised = None if over is None else over < 0 if rule.below else over > 0
            results.append(
                Checked(rule.check, rule.quantity, rule.text, value, rule.threshold, raised)
            )
    return results


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
