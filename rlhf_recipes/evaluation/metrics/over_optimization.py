"""Over-optimization: policies whose proxy reward rose while gold fell."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf_recipes.evaluation.metrics.claims import Claim, claim
from rlhf_recipes.evaluation.metrics.comparisons import Reward, difference
from rlhf_recipes.evaluation.metrics.samples import FIELD, Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Correlation,
    Interval,
    holm_corrected,
    rank_correlation,
)
from rlhf_recipes.evaluation.metrics.typed_json import Share


@dataclass(frozen=True)
class ProxyAndGold:
    """Gain of a policy by proxy minus that by gold, in standard deviations of base.

    Attributes:
        gap: Mean over prompts, with its interval, p and corrected p.
        spearman: Correlation of proxy and gold over prompts, first samples.
        over_optimized: Whether the proxy rose and gold fell; None for earlier checkpoints.
    """

    gap: float
    gap_ci: Interval
    gap_p: Share
    gap_p_holm: Share | None
    spearman: Correlation
    over_optimized: bool | None


@dataclass(frozen=True)
class OverOptimization:
    """Proxy and gold of each policy, and their correlation in base."""

    spearman_base: Correlation
    policies: Mapping[str, ProxyAndGold]


def over_optimization(
    collection: Collection, rewards: Mapping[str, Mapping[str, Reward]]
) -> OverOptimization | None:
    """Compare the gains by proxy and by gold of each policy.

    A policy is over-optimized if the proxy rose and gold fell, each by its interval and corrected
    p. Gains are in the base's standard deviations, so that both metrics are on one scale (Gao et
    al., https://arxiv.org/abs/2210.10760). A gap of gains with an interval above 0 says that the
    proxy gained more than gold, which is a sign of over-optimization and no proof. Returns None
    without gold, and where base's scores by either metric do not vary.

    Args:
        rewards: By model and metric, with their corrected p-values.
    """
    if "gold" not in collection.metrics:
        return None
    if not all(collection.base.values(field).std() for field in FIELD.values()):
        return None
    base, prompts = collection.base, len(collection.base.records)
    gaps = holm_corrected(
        {
            m.name: difference(_standardized(m, base), _standardized(base, base))
            for m in collection.policies
        },
        [model.name for model in collection.finals],
    )
    policies = {}
    for name, gap in gaps.items():
        claims = [gain_claim(rewards[name][metric], prompts) for metric in FIELD]
        is_over_optimized = claims == [Claim.ABOVE, Claim.BELOW]
        policies[name] = ProxyAndGold(
            gap=gap.mean,
            gap_ci=gap.ci,
            gap_p=gap.p,
            gap_p_holm=gap.p_holm,
            spearman=_proxy_gold_correlation(collection.models[name]),
            over_optimized=None if gap.p_holm is None else is_over_optimized,
        )
    return OverOptimization(_proxy_gold_correlation(base), policies)


def gain_claim(reward: Reward, prompts: int) -> Claim:
    """Decide whether a gain over base is above or below 0."""
    return claim(reward.gain.ci, prompts, p_holm=reward.p_holm)


def _standardized(model: ModelSamples, base: ModelSamples) -> Array:
    """Return proxy minus gold in standard deviations of base, shape (prompts, 1)."""
    proxy, gold = (
        model.values(field).mean(axis=1, keepdims=True) / base.values(field).std(ddof=1)
        for field in FIELD.values()
    )
    return np.asarray(proxy - gold)


def _proxy_gold_correlation(model: ModelSamples) -> Correlation:
    return rank_correlation(model.values("reward")[:, 0], model.values("gold")[:, 0])
