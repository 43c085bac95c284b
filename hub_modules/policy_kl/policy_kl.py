"""KL divergence of a policy from its reference, as a measurement of `evaluate`."""

from typing import Any

import datasets
import evaluate

from rlhf_recipes.evaluation.metrics.kl import kl_summary
from rlhf_recipes.evaluation.metrics.samples import ModelSamples
from rlhf_recipes.evaluation.metrics.typed_json import as_json

DESCRIPTION = """\
KL(policy || reference) in nats per completion and per token, from divergences measured on the \
policy's own samples, with a 95% interval over prompts and a check against the sampled log-ratio."""

CITATION = """\
@article{amini2025better,
  title = {Better Estimation of the Kullback--Leibler Divergence Between Language Models},
  author = {Amini, Afra and Vieira, Tim and Cotterell, Ryan},
  year = {2025},
  url = {https://arxiv.org/abs/2504.10637}
}"""

INPUTS = """
Args:
    kl: Exact divergence of each completion, summed over its tokens (nats), one per prompt.
    kl_k1: Log-probability of the completion under the policy minus that under the reference model.
    n_tokens: Number of tokens of the completion.
Returns:
    seq (nats per completion), ci, token (nats per token), sqrt, k1, k1_agrees.
Examples:
    >>> metric = evaluate.load("hub_modules/policy_kl", module_type="measurement")
    >>> metric.compute(kl=[1.0, 3.0], kl_k1=[0.5, 3.5], n_tokens=[4, 4])["token"]
    0.5
"""

RETURNED = ("seq", "ci", "token", "sqrt", "k1", "k1_agrees")


class PolicyKL(evaluate.Measurement):  # type: ignore[misc]  # evaluate is untyped
    """Wrap `rlhf_recipes.evaluation.metrics.kl` as a measurement."""

    def _info(self) -> evaluate.MeasurementInfo:
        number = datasets.Value("float64")
        return evaluate.MeasurementInfo(
            module_type="measurement",
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"kl": number, "kl_k1": number, "n_tokens": number}),
        )

    def _compute(self, **columns: Any) -> dict[str, Any]:
        rows = zip(*columns.values(), strict=True)
        records = [[dict(zip(columns, row, strict=True))] for row in rows]
        summary = as_json(kl_summary(ModelSamples("policy", records)))
        return {name: summary[name] for name in RETURNED}
