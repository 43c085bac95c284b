"""Over-optimization: policies whose proxy reward rose while gold fell."""

from rlhf_recipes.evaluation.metrics.claims import Claim, claim
from rlhf_recipes.evaluation.metrics.samples import FIELD, Collection, ModelSamples, Results
from rlhf_recipes.evaluation.metrics.statistics import (
    holm,
    mean_interval,
    rank_correlation,
    sign_flip_test,
)


def over_optimization(collection: Collection, models: Results) -> Results | None:
    """Compare the gains by proxy and by gold of each policy.

    A policy is over-optimized if the proxy rose and gold fell, each by its interval and corrected
    p. Gains are in the base's standard deviations, so that both metrics are on one scale (Gao et
    al., https://arxiv.org/abs/2210.10760). A gap of gains with an interval above 0 says that the
    proxy gained more than gold, which is a sign of over-optimization and no proof. Returns None
    without gold, and where base's scores by either metric do not vary.

    Args:
        models: Entries of `models` in the results, with their rewards and corrected p-values.
    """
    if "gold" not in collection.metrics:
        return None
    if not all(collection.base.values(field).std() for field in FIELD.values()):
        return None
    facts = {m.name: _gains(m, collection, models[m.name]) for m in collection.policies}
    finals = [model.name for model in collection.finals]
    corrected = holm([facts[name]["gap_p"] for name in finals])
    for_finals = dict(zip(finals, corrected, strict=True))
    prompts = len(collection.base.records)
    return {
        "spearman_base": _proxy_gold_correlation(collection.base),
        "policies": {
            name: _decided(policy, for_finals[name], prompts)
            if name in for_finals
            else {**policy, "gap_p_holm": None, "over_optimised": None}
            for name, policy in facts.items()
        },
    }


def gain_claims(policy: Results, prompts: int) -> tuple[Claim, Claim, Claim]:
    """Decide the claims on the gain by proxy, on the gain by gold, and on proxy minus gold."""
    proxy, gold, gap = (
        claim(policy[f"{name}_ci"], prompts, p_holm=policy[f"{name}_p_holm"])
        for name in ("proxy", "gold", "gap")
    )
    return proxy, gold, gap


def _decided(policy: Results, gap_p_holm: float, prompts: int) -> Results:
    tested = {**policy, "gap_p_holm": gap_p_holm}
    by_proxy, by_gold, _ = gain_claims(tested, prompts)
    return {**tested, "over_optimised": (by_proxy, by_gold) == (Claim.ABOVE, Claim.BELOW)}


def _gains(model: ModelSamples, collection: Collection, entry: Results) -> Results:
    gains = {}
    for metric, field in FIELD.items():
        base = collection.base.values(field)
        gains[metric] = (model.values(field).mean(1) - base.mean(1)) / float(base.std(ddof=1))
    gaps = gains["proxy"] - gains["gold"]
    proxy, gold = entry["reward"], entry["gold"]
    return {
        "proxy_gain": proxy["gain"]["value"],
        "proxy_ci": proxy["gain"]["ci"],
        "proxy_p_holm": proxy["difference"]["p_holm"],
        "gold_gain": gold["gain"]["value"],
        "gold_ci": gold["gain"]["ci"],
        "gold_p_holm": gold["difference"]["p_holm"],
        "gap": float(gaps.mean()),
        "gap_ci": mean_interval(gaps),
        "gap_p": sign_flip_test(gaps),
        "spearman": _proxy_gold_correlation(model),
    }


def _proxy_gold_correlation(model: ModelSamples) -> Results:
    return rank_correlation(model.values("reward")[:, 0], model.values("gold")[:, 0])
