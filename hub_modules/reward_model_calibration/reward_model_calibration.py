"""Calibration of a reward model on preference pairs, as a metric of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from rlhf_recipes.evaluation.metrics.calibration import calibration
from rlhf_recipes.evaluation.metrics.typed_json import as_json
from rlhf_recipes.evaluation.metrics.win_rate import win_rate

DESCRIPTION = """\
How well a reward model's margins are calibrated as Bradley-Terry log-odds: accuracy, negative \
log-likelihood, Brier score, folded expected calibration error with its bins, best temperature."""

INPUTS = """
Args:
    chosen: Scores of the preferred completions.
    rejected: Scores of the rejected completions of the same prompts, in the same order.
Returns:
    accuracy (value, ci), nll, nll_of_chance, brier, ece, temperature, reliability (bins).
Examples:
    >>> metric = evaluate.load("hub_modules/reward_model_calibration")
    >>> metric.compute(chosen=[0.0, 0.0], rejected=[0.0, 0.0])["ece"]
    0.0
"""


class RewardModelCalibration(evaluate.Metric):  # type: ignore[misc]  # evaluate is untyped
    """Wrap `rlhf_recipes.evaluation.metrics.calibration` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            module_type="metric",
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"chosen": number, "rejected": number}),
        )

    def _compute(self, chosen: Any, rejected: Any) -> dict[str, Any]:
        own, other = (np.array(side, dtype=np.float64) for side in (chosen, rejected))
        rate = win_rate(own[:, None], other[:, None])
        accuracy = {"value": rate.value, "ci": list(rate.ci)}
        return {"accuracy": accuracy, **as_json(calibration(own - other))}
