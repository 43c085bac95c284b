"""The first sentence of the report, which model is the best, and what judged it."""

from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS, Claim, win_claim
from rlhf_recipes.evaluation.report.sentences import listed, rate
from rlhf_recipes.evaluation.results import EvaluationResults

# By what holds of the policies; see `headline_state`.
HEADLINE = {
    "too few prompts": "{n} prompts are too few to say which model is best: at least {fewest} are "
    "needed.",
    "none better": "No model is better than base by {metric}: no difference from base is "
    "detectable for {undetected}.",
    "none better, some worse": "No model is better than base by {metric}: {worse} {is_worse} "
    "worse, and for {undetected} no difference is detectable.",
    "all worse": "No model is better than base by {metric}: {worse} {is_worse} worse.",
    "only one": "**{best}** is better than base by {metric}: it wins {rate} of the comparisons.",
    "one best": "**{best}** is the best model by {metric}: it wins {rate} of the comparisons with "
    "base, and it is better than {behind}.",
    "shared": "No single model is best by {metric}: **{best}** wins most often against base, "
    "{rate}, but does not detectably differ from {level}.",
    "shared, some behind": "No single model is best by {metric}: **{best}** wins most often "
    "against base, {rate}, and is better than {behind}, but does not detectably differ from "
    "{level}.",
    "outdone": "No single model is best by {metric}: **{best}** wins most often against base, "
    "{rate}, and {ahead} {wins} against it directly.",
}
REVERSED = {Claim.ABOVE: Claim.BELOW, Claim.BELOW: Claim.ABOVE}
SEEDS = " Other seeds of its method ({seeds}) are not compared with it."
# By what `run.gold` names, and by whether there is gold at all.
JUDGED_BY = {
    "rule": "Gold is a rule that scores every completion: the function `{name}` in `{path}`.",
    "model": "Gold is a second reward model that scores every completion: `{path}`.",
    "unnamed": "Gold is a score that came with the samples; the collection does not name it.",
    "judge": "There is no gold: models are compared by the extra judge {metric} ({what}).",
    "proxy": "There is no gold: models are compared by the proxy, the reward model that PPO and "
    "GRPO were trained against, so a gain may be over-optimization.",
}


def claims_on(
    results: EvaluationResults, metric: str
) -> tuple[dict[str, Claim], str, dict[str, Claim]]:
    """Return each policy's claim against base, the policy that wins most, and its direct claims.

    The direct claims say whether that policy is above each other one, by their paired comparison;
    seeds of one family have none.
    """
    rates = {name: results.models[name].win_rate[metric] for name in results.finals}
    against_base = {name: win_claim(win) for name, win in rates.items()}
    better = [name for name in rates if against_base[name] == Claim.ABOVE]
    best = max(better or rates, key=lambda name: rates[name].value)
    direct = {}
    for other in rates:
        if pair := results.pairwise.get(f"{best} vs {other}"):
            direct[other] = win_claim(pair[metric])
        elif pair := results.pairwise.get(f"{other} vs {best}"):
            direct[other] = REVERSED.get(win_claim(pair[metric]), Claim.UNDETECTED)
    return against_base, best, direct


def headline_state(against_base: dict[str, Claim], best: str, direct: dict[str, Claim]) -> str:
    """Return which of the headlines holds."""
    claims = set(against_base.values())
    if Claim.TOO_FEW in claims:
        return "too few prompts"
    if Claim.ABOVE not in claims:
        if Claim.BELOW not in claims:
            return "none better"
        return "none better, some worse" if Claim.UNDETECTED in claims else "all worse"
    if not direct:
        return "only one"
    if Claim.BELOW in direct.values():
        return "outdone"
    if Claim.UNDETECTED not in direct.values():
        return "one best"
    return "shared, some behind" if Claim.ABOVE in direct.values() else "shared"


def headline(results: EvaluationResults) -> str:
    """Say which model is best and whether the others differ from it, as the tests allow."""
    metric = results.config.primary
    against_base, best, direct = claims_on(results, metric)
    win = results.models[best].win_rate[metric]

    def named(claims: dict[str, Claim], claim: Claim) -> list[str]:
        return [f"**{name}**" for name, value in claims.items() if value == claim]

    worse, ahead = named(against_base, Claim.BELOW), named(direct, Claim.BELOW)
    state = headline_state(against_base, best, direct)
    sentence = HEADLINE[state].format(
        best=best,
        metric=metric,
        rate=rate(win.value, win.ci),
        n=results.config.n_prompts,
        fewest=FEWEST_PROMPTS,
        worse=listed(worse),
        is_worse="is" if len(worse) == 1 else "are",
        undetected=listed(named(against_base, Claim.UNDETECTED)),
        behind=listed(named(direct, Claim.ABOVE)),
        level=listed(named(direct, Claim.UNDETECTED)),
        ahead=listed(ahead),
        wins="wins" if len(ahead) == 1 else "win",
    )
    seeds = [name for name in against_base if name != best and name not in direct]
    if not seeds or against_base[best] != Claim.ABOVE:
        return sentence
    return sentence + SEEDS.format(seeds=", ".join(seeds))


def judged_by_sentence(results: EvaluationResults) -> str:
    """Say in words what scored the completions that claims are made on."""
    run, primary = results.run, results.config.primary
    path, separator, name = (run.get("gold") or "").rpartition(".py:")
    if primary == "gold":
        kind = "rule" if separator else "model" if name else "unnamed"
    else:
        kind = "proxy" if primary == "proxy" else "judge"
    return JUDGED_BY[kind].format(
        path=f"{path}.py" if separator else name,
        name=name,
        metric=primary,
        what=(run.get("judges") or {}).get(primary, "from the samples"),
    )
