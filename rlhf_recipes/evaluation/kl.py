"""How far a policy has moved from the reference, from the divergences saved with its samples."""

import math
from typing import Any

import numpy as np
from scipy import stats

from rlhf_recipes.evaluation.samples import ModelSamples
from rlhf_recipes.evaluation.statistics import mean_interval, rank_correlation

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
        "capped": float(np.mean([record.get("finish") == "length" for record in model.flat])),
        "by_position": kl_by_position(model),
        "by_length": kl_by_length(model),
    }


def kl_by_position(model: ModelSamples) -> dict[str, Any] | None:
    """Mean exact KL at each token position over the responses that reach it, with its interval.

    KL_t = mean over responses of Σ_v π(v|h_t) (log π(v|h_t) - log ref(v|h_t)); Σ_t n_t KL_t is the
    sum of all responses' KL. Intervals are Student's over responses, None where there is one. None
    without saved curves.
    """
    curves = [record["kl_curve"] for record in model.flat if record.get("kl_curve") is not None]
    if len(curves) < len(model.flat) or not any(curves):
        return None
    longest = max(map(len, curves))
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    n = np.sum(~np.isnan(table), axis=0)
    mean = np.nansum(table, axis=0) / n
    square = np.nansum((table - mean) ** 2, axis=0)
    half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * np.sqrt(square / np.maximum(n - 1, 1) / n)
    ends = zip(mean.tolist(), half.tolist(), n.tolist(), strict=True)
    return {
        "kl": mean.tolist(),
        "n": n.tolist(),
        "ci": [[m - h, m + h] if count > 1 else None for m, h, count in ends],
    }


def kl_by_length(model: ModelSamples) -> dict[str, Any]:
    """Whether longer responses carry more KL: rank correlation, and means by third of length.

    The correlation is over prompts (first sample), the thirds over all responses.
    """
    kl, tokens = model.values("kl"), model.values("n_tokens")
    order = np.argsort(tokens.ravel(), kind="stable")
    thirds = []
    for part in np.array_split(order, 3):
        if len(part):
            lengths, spent = tokens.ravel()[part], kl.ravel()[part]
            thirds.append(
                {
                    "tokens": [int(lengths.min()), int(lengths.max())],
                    "n": len(part),
                    "kl": float(spent.mean()),
                    "per_token": float(spent.sum() / max(lengths.sum(), 1)),
                }
            )
    return {"spearman": rank_correlation(kl[:, 0], tokens[:, 0]), "thirds": thirds}
