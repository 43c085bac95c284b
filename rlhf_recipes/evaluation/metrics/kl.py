"""KL of a policy from the reference, from the divergences saved with its samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rlhf_recipes.evaluation.metrics.samples import ModelSamples
from rlhf_recipes.evaluation.metrics.statistics import (
    Interval,
    mean_interval,
    student_half_width,
)
from rlhf_recipes.evaluation.metrics.typed_json import AtLeast0, Count

JOINT_ERRORS = 3.0
ESTIMATOR = "exact over the vocabulary at each position of the policy's own samples"


@dataclass(frozen=True)
class KLByPosition:
    """Mean KL at each token position, over the n completions that reach it."""

    kl: Sequence[float]
    n: Sequence[Count]
    ci: Sequence[Interval | None]


@dataclass(frozen=True)
class KL:
    """KL(policy || reference) in nats, of one model.

    Attributes:
        seq: Per completion, with its interval `ci` over prompts and its `sd` over samples.
        token: Per token.
        sqrt: √seq, the axis of the frontier.
        k1: Mean sampled log-ratio.
        k1_joint_se: Standard error over prompts of k1 - seq.
        k1_agrees: Whether k1 and seq lie within three of these.
        estimator: How it was measured.
        by_position: None without saved curves.
    """

    seq: float
    ci: Interval
    sd: AtLeast0
    token: float
    sqrt: AtLeast0
    k1: float
    k1_joint_se: AtLeast0
    k1_agrees: bool
    estimator: str
    by_position: KLByPosition | None


def kl_summary(model: ModelSamples) -> KL:
    """Summarize KL(policy || reference) in nats: per completion, per token, with a cross-check.

    seq   = mean over prompts of KL(y) = Σ_t Σ_v π(v|h_t) (log π(v|h_t) - log ref(v|h_t))
    token = Σ KL(y) / Σ tokens(y), not the mean of ratios

    The Rao-Blackwellized estimator of https://arxiv.org/abs/2504.10637. k1, the sampled log-ratio
    log π(y) - log ref(y), has the same mean, so their difference by prompt must be 0 within three
    of its standard errors; if not, the samples do not come from the distribution whose logits were
    used.
    """
    exact, sampled = model.values("kl"), model.values("kl_k1")
    per_prompt = exact.mean(axis=1)
    gap = sampled.mean(axis=1) - per_prompt
    error = float(stats.sem(gap))
    return KL(
        seq=float(per_prompt.mean()),
        ci=mean_interval(per_prompt),
        sd=float(exact.std(ddof=1)),
        token=float(exact.sum() / max(model.values("n_tokens").sum(), 1)),
        sqrt=math.sqrt(max(0.0, float(per_prompt.mean()))),
        k1=float(sampled.mean()),
        k1_joint_se=error,
        k1_agrees=bool(abs(gap.mean()) <= JOINT_ERRORS * error + 1e-9),
        estimator=ESTIMATOR,
        by_position=kl_by_position(model),
    )


def kl_by_position(model: ModelSamples) -> KLByPosition | None:
    """Compute the mean exact KL at each token position, with its interval.

    KL_t = mean over the completions that reach t of Σ_v π(v|h_t) (log π(v|h_t) - log ref(v|h_t)),
    so that Σ_t n_t KL_t is the sum of all completions' KL. Intervals are Student's over prompts:
    the deviations of a prompt's completions are summed before they are squared. An interval is None
    where one prompt is left. Returns None without saved curves.
    """
    curves: list[Any] = [record.get("kl_curve") for record in model.flat]
    if None in curves or not any(curves):
        return None
    reached = np.array([len(curve) for curve in curves])[:, None] > np.arange(max(map(len, curves)))
    table = np.zeros(reached.shape)
    table[reached] = np.concatenate(curves)
    n = reached.sum(axis=0)
    mean = table.sum(axis=0) / n
    shape = len(model.records), -1, len(n)
    deviations = np.where(reached, table - mean, 0).reshape(shape).sum(axis=1)
    prompts = reached.reshape(shape).any(axis=1).sum(axis=0)
    spread = np.square(deviations).sum(axis=0) * prompts / np.maximum(prompts - 1, 1)
    half = student_half_width(prompts) * np.sqrt(spread) / n
    ends = zip((mean - half).tolist(), (mean + half).tolist(), prompts, strict=True)
    intervals = [Interval(low, high) if count > 1 else None for low, high, count in ends]
    return KLByPosition(mean.tolist(), n.tolist(), intervals)
