"""Win rate of a policy over a reference, as a metric of Hugging Face's `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from rlhf_recipes.evaluation.metrics.typed_json import as_json
from rlhf_recipes.evaluation.metrics.win_rate import win_rate

DESCRIPTION = """\
Fraction of prompts on which a policy's completion scores higher than a reference's, a tie \
counting one half, with its 95% interval over prompts and the exact sign test."""

INPUTS = """
Args:
    predictions: Scores of the policy's completions, one per prompt or a list per prompt.
    references: Scores of the reference's completions of the same prompts, in the same form.
    epsilon: Differences up to this size are ties.
Returns:
    value, ci (low and high), method, n, n_eff, wins, ties, losses, p, detectable.
Examples:
    >>> metric = evaluate.load("hub_modules/win_rate")
    >>> metric.compute(predictions=[1.0, 1.0, 1.0, 0.0], references=[0.0, 0.0, 1.0, 1.0])["value"]
    0.625
"""


class WinRate(evaluate.Metric):  # type: ignore[misc]  # evaluate is untyped
    """Wrap `rlhf_recipes.evaluation.metrics.win_rate` as a metric."""

    def _info(self) -> evaluate.MetricInfo:
        one, several = datasets.Value("float64"), datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            module_type="metric",
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": kind, "references": kind})
                for kind in (one, several)
            ],
        )

    def _compute(self, predictions: Any, references: Any, epsilon: float = 0.0) -> dict[str, Any]:
        sides = [np.array(scores, dtype=np.float64) for scores in (predictions, references)]
        own, other = (side[:, None] if side.ndim == 1 else side for side in sides)
        return dict(as_json(win_rate(own, other, epsilon)))
