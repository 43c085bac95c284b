"""The first sentence of the report, which model is the best, and what judged it."""

from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS, Claim, win_claim
from rlhf_recipes.evaluation.report.sentences import listed, rate
from rlhf_recipes.evaluation.results import EvaluationResults

REVERSED = {Claim.ABOVE: Claim.BELOW, Claim.BELOW: Claim.ABOVE}
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


def headline(results: EvaluationResults) -> str:
    """Say which model is best and whether the others differ from it, as the tests allow."""
    metric, n = results.config.primary, results.config.n_prompts
    against_base, best, direct = claims_on(results, metric)
    if Claim.TOO_FEW in against_base.values():
        return (
            f"{n} prompts are too few to say which model is best: at least {FEWEST_PROMPTS} are "
            "needed."
        )
    if against_base[best] != Claim.ABOVE:
        worse, level = _named(against_base, Claim.BELOW), _named(against_base, Claim.UNDETECTED)
        facts = [f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} worse"] * bool(worse)
        facts += [f"no difference from base is detectable for {listed(level)}"] * bool(level)
        return f"No model is better than base by {metric}: {', and '.join(facts)}."
    win = results.models[best].win_rate[metric]
    seeds = [name for name in against_base if name != best and name not in direct]
    others = f" Other seeds of its method ({', '.join(seeds)}) are not compared with it."
    sentence = _best_sentence(f"**{best}**", metric, rate(win.value, win.ci), direct)
    return sentence + others * bool(seeds)


def _best_sentence(best: str, metric: str, wins: str, direct: dict[str, Claim]) -> str:
    """Say how far the policy that wins most against base is ahead of the others."""
    behind, ahead, level = (
        _named(direct, claim) for claim in (Claim.ABOVE, Claim.BELOW, Claim.UNDETECTED)
    )
    better = f"is better than {listed(behind)}"
    most = f"No single model is best by {metric}: {best} wins most often against base, {wins}, "
    if not direct:
        return f"{best} is better than base by {metric}: it wins {wins} of the comparisons."
    if ahead:
        verb = "wins" if len(ahead) == 1 else "win"
        return f"{most}and {listed(ahead)} {verb} against it directly."
    if level:
        most += f"and {better}, " * bool(behind)
        return f"{most}but does not detectably differ from {listed(level)}."
    return (
        f"{best} is the best model by {metric}: it wins {wins} of the comparisons with base, and "
        f"it {better}."
    )


def _named(claims: dict[str, Claim], claim: Claim) -> list[str]:
    return [f"**{name}**" for name, value in claims.items() if value == claim]


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
