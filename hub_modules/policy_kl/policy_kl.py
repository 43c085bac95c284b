"""KL divergence of a policy from its reference, as a measurement of `evaluate`."""

from typing import Any

import datasets
import evaluate

from rlhf_recipes.evaluation.metrics.kl import kl_summary
from rlhf_recipes.evaluation.metrics.samples import ModelSamples

DESCRIPTION = """\
KL(policy || reference) in nats a response and a token, from divergences measured on the policy's \
own samples, with its 95% interval over prompts and a check against the sampled log-ratio."""

CITATION = """\
@article{amini2025better,
  title = {Better Estimation of the Kullback--Leibler Divergence Between Language Models},
  author = {Amini, Afra and Vieira, Tim and Cotterell, Ryan},
  year = {2025},
  url = {https://arxiv.org/abs/2504.10637}
}"""

INPUTS = """
Args:
    kl: Exact divergence summed over each response's tokens: one response a prompt.
    kl_k1: log-probability of the response by the policy less that by the reference.
    n_tokens: Tokens of the response.
Returns:
    seq (nats a response), ci, token (nats a token), sqrt, k1, k1_agrees.
Examples:
    >>> metric = evaluate.load("hub_modules/policy_kl", module_type="measurement")
    >>> metric.compute(kl=[1.0, 3.0], kl_k1=[0.5, 3.5], n_tokens=[4, 4])["token"]
    0.5
"""

RETURNED = ("seq", "ci", "token", "sqrt", "k1", "k1_agrees")


class PolicyKL(evaluate.Measurement):  # type: ignore[misc]  # evaluate is untyped
    """A thin shell over `rlhf_recipes.evaluation.metrics.kl`."""

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
        found = kl_summary(ModelSamples("policy", records))
        return {name: found[name] for name in RETURNED}
