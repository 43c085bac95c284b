"""How far a policy has moved from the reference, from the divergences saved with its samples."""

import math
from typing import Any

from scipy import stats

from rlhf_recipes.evaluation.samples import ModelSamples
from rlhf_recipes.evaluation.statistics import mean_interval

JOINT_ERRORS = 3.0
ESTIMATOR = "exact over the vocabulary at each position of the policy's own samples"


def kl_summary(model: ModelSamples) -> dict[str, Any]:
    """KL(policy || reference) in nats: per response with its interval, per token, cross-checked.

    seq   = mean over prompts of KL(y) = Σ_t Σ_v π(v|h_t) (log π(v|h_t) - log ref(v|h_t))
    token = Σ KL(y) / Σ tokens(y), not the mean of ratios

    The Rao-Blackwellised estimator of https://arxiv.org/abs/2504.10637. k1, the sampled log-ratio
    log π(y) - log ref(y), has the same mean, so the two must agree within three joint standard
    errors; if not, the samples do not come from the distribution whose logits were used.
    """
    exact, sampled = model.values("kl"), model.values("kl_k1")
    per_prompt, k1_per_prompt = exact.mean(axis=1), sampled.mean(axis=1)
    joint = math.hypot(stats.sem(per_prompt), stats.sem(k1_per_prompt))
    gap = abs(float(per_prompt.mean() - k1_per_prompt.mean()))
    return {
        "seq": float(per_prompt.mean()),
        "ci": list(mean_interval(per_prompt)),
        "sd": float(exact.std(ddof=1)),
        "token": float(exact.sum() / max(model.values("n_tokens").sum(), 1)),
        "sqrt": math.sqrt(max(0.0, float(per_prompt.mean()))),
        "k1": float(k1_per_prompt.mean()),
        "k1_joint_se": joint,
        "k1_agrees": gap <= JOINT_ERRORS * joint + 1e-9,
        "estimator": ESTIMATOR,
    }
