"""Over-optimization: policies whose proxy reward rose while gold fell."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlhf_recipes.evaluation.metrics.claims import Claim, claim
from rlhf_recipes.evaluation.metrics.comparisons import Reward
from rlhf_recipes.evaluation.metrics.samples import FIELD, Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.statistics import (
    Correlation,
    Interval,
    holm,
    mean_interval,
    rank_correlation,
    sign_flip_test,
)
from rlhf_recipes.evaluation.metrics.typed_json import Share


@dataclass(frozen=True)
class ProxyAndGold:
    """Gains of a policy by proxy and by gold, in standard deviations of base.

    Attributes:
        proxy_p_holm: Corrected p of the difference to base, as is `gold_p_holm`.
        gap: Proxy gain minus gold gain, paired by prompt, with its interval, p and corrected p.
        spearman: Correlation of proxy and gold over prompts, first samples.
        over_optimized: Whether the proxy rose and gold fell; None for earlier checkpoints.
    """

    proxy_gain: float
    proxy_ci: Interval
    proxy_p_holm: Share | None
    gold_gain: float
    gold_ci: Interval
    gold_p_holm: Share | None
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
    facts = {m.name: _gains(m, collection, rewards[m.name]) for m in collection.policies}
    finals = [model.name for model in collection.finals]
    corrected = holm([facts[name].gap_p for name in finals])
    for_finals = dict(zip(finals, corrected, strict=True))
    prompts = len(collection.base.records)
    decided = {n: _decided(facts[n], p_holm, prompts) for n, p_holm in for_finals.items()}
    return OverOptimization(_proxy_gold_correlation(collection.base), facts | decided)


def gain_claims(policy: ProxyAndGold, prompts: int) -> tuple[Claim, Claim, Claim]:
    """Decide the claims on the gain by proxy, on the gain by gold, and on proxy minus gold."""
    return (
        claim(policy.proxy_ci, prompts, p_holm=policy.proxy_p_holm),
        claim(policy.gold_ci, prompts, p_holm=policy.gold_p_holm),
        claim(policy.gap_ci, prompts, p_holm=policy.gap_p_holm),
    )


def _decided(policy: ProxyAndGold, gap_p_holm: float, prompts: int) -> ProxyAndGold:
    by_proxy, by_gold, _ = gain_claims(policy, prompts)
    is_over_optimized = (by_proxy, by_gold) == (Claim.ABOVE, Claim.BELOW)
    return replace(policy, gap_p_holm=gap_p_holm, over_optimized=is_over_optimized)


def _gains(
    model: ModelSamples, collection: Collection, rewards: Mapping[str, Reward]
) -> ProxyAndGold:
    gains = {}
    for metric, field in FIELD.items():
        base = collection.base.values(field)
        gains[metric] = (model.values(field).mean(1) - base.mean(1)) / float(base.std(ddof=1))
    gaps = gains["proxy"] - gains["gold"]
    proxy, gold = rewards["proxy"], rewards["gold"]
    return ProxyAndGold(
        proxy_gain=proxy.gain.value,
        proxy_ci=proxy.gain.ci,
        proxy_p_holm=proxy.p_holm,
        gold_gain=gold.gain.value,
        gold_ci=gold.gain.ci,
        gold_p_holm=gold.p_holm,
        gap=float(gaps.mean()),
        gap_ci=mean_interval(gaps),
        gap_p=sign_flip_test(gaps),
        gap_p_holm=None,
        spearman=_proxy_gold_correlation(model),
        over_optimized=None,
    )


def _proxy_gold_correlation(model: ModelSamples) -> Correlation:
    return rank_correlation(model.values("reward")[:, 0], model.values("gold")[:, 0])
