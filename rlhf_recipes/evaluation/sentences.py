"""Sentences about results, each gated by its statistics: no direction is named without evidence.

Numbers come from the results as they are, rounded for reading; nothing is computed here.
"""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_recipes.evaluation import statistics
from rlhf_recipes.evaluation.comparisons import UNDECIDED, verdict

Results = dict[str, Any]

MOST_NAMED = 3


def number(value: float) -> str:
    """Three significant digits, never scientific: 52.1, 0.123, 1234."""
    if value == 0:
        return "0"
    # Of the rounded value: 9.998 is 10.0.
    decimals = min(4, max(0, 2 - math.floor(math.log10(float(f"{abs(value):.2e}")))))
    text = f"{value:.{decimals}f}"
    return "0" if float(text) == 0 else text


def signed(value: float) -> str:
    """The number with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def gain(value: float) -> str:
    """A gain in standard deviations of base."""
    text = f"{value:+.2f}"
    return "+0.00" if text == "-0.00" else text


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f}%"


def p_value(p: float) -> str:
    """Two significant digits: 0.033, 2.2e-13."""
    return f"{p:.2g}"


def span(ci: Sequence[float]) -> str:
    """An interval in its own unit."""
    return f"[{number(ci[0])}, {number(ci[1])}]"


def percent_span(ci: Sequence[float]) -> str:
    """An interval of shares, in percent."""
    return f"[{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"


def optional(value: float | None) -> str:
    """The number, if it could be computed."""
    return "undefined" if value is None else number(value)


def correlation(found: Results) -> str:
    """A rank correlation with its interval, or why there is none."""
    if found["value"] is None:
        return f"undefined: {found['reason']}"
    return f"{number(found['value'])} {span(found['ci'])}"


def rate(value: float, ci: Sequence[float]) -> str:
    """A share never stands without its interval: 75% [63, 84]."""
    return f"{percent(value)} {percent_span(ci)}"


def comparison_sentence(name: str, other: str, win: Results, metric: str) -> str:
    """One policy against base or another policy, on the metric claims are made on."""
    facts = (
        f"{rate(win['value'], win['ci'])} of {win['n']} prompts by {metric} "
        f"({win['wins']} won, {win['ties']} tied, {win['losses']} lost; "
        f"Holm p = {p_value(win['p_holm'])})"
    )
    found = verdict(win)
    if found != UNDECIDED:
        return f"**{name}** is **{found}** than {other}: it wins {facts}."
    sentence = f"**{name}** shows no detectable difference from {other}: it wins {facts}."
    if win["detectable"]:
        sentence += (
            f" Only a difference of {100 * win['detectable']:.0f} points or more would be found "
            f"{percent(statistics.POWER)} of the time."
        )
    return sentence


def frontier_sentence(name: str, kl: Results, front: Results, metric: str) -> str:
    """Whether a model is on the reward-KL frontier, and how sure that is."""
    spent = f"**{name}** spends {number(kl['seq'])} nats a response {span(kl['ci'])} and"
    draws = f"({percent(front['probability'])} of the bootstrap draws)"
    if 1 - front["probability"] >= statistics.CONFIDENCE:
        named = front["dominated_by"][:MOST_NAMED]
        more = " and others" if len(front["dominated_by"]) > MOST_NAMED else ""
        by = (", " if more else " and ").join(named) + more
        return f"{spent} is dominated by {by} on {metric}: on the frontier in {draws[1:-1]}."
    if front["probability"] >= statistics.CONFIDENCE:
        return f"{spent} is on the {metric} frontier {draws}."
    return f"{spent} may be on the {metric} frontier {draws}: these prompts do not settle it."


def over_optimisation_sentence(name: str, policy: Results) -> str:
    """Proxy gain against gold gain; `over-optimised` only where gold fell while the proxy rose."""
    facts = (
        f"proxy {gain(policy['proxy_gain'])}, gold {gain(policy['gold_gain'])} sd of base, "
        f"gap {gain(policy['gap'])} {span(policy['gap_ci'])}"
    )
    if policy["over_optimised"]:
        return f"**{name}** is over-optimised: the proxy rose and gold fell ({facts})."
    if policy["gap_ci"][0] > 0:
        return f"**{name}** gained more on the proxy than on gold, and gold did not fall ({facts})."
    return f"**{name}** shows no sign of over-optimisation ({facts})."


def fit_sentence(family: str, fit: Results) -> str:
    """Gao et al.'s curve through a family's checkpoints: where gold would peak."""
    facts = f"d (α - β log d), α = {number(fit['alpha'])}, β = {number(fit['beta'])}, d = √KL"
    if fit["peak"] is None:
        return f"**{family}**: gold shows no peak over {fit['checkpoints']} checkpoints ({facts})."
    return (
        f"**{family}**: the curve through {fit['checkpoints']} checkpoints peaks at d = "
        f"{number(fit['peak'])} ({facts})."
    )


def failure_sentences(failures: Results) -> list[str]:
    """The failures that became more or less frequent than in base beyond doubt."""
    sentences = []
    for detector, found in failures.items():
        for name, entry in found["per_model"].items():
            p_holm = entry.get("p_holm")  # base and earlier checkpoints are not tested
            if p_holm is None or p_holm >= statistics.ALPHA:
                continue
            low, high = entry["diff_ci"]
            if low <= 0 <= high:
                continue
            direction = "more" if entry["diff_vs_base"] > 0 else "less"
            base = found["per_model"]["base"]["rate"]
            sentences.append(
                f"**{name}** has {direction} `{detector}` than base: {percent(entry['rate'])} "
                f"against {percent(base)} (difference {100 * entry['diff_vs_base']:+.0f} points "
                f"{percent_span(entry['diff_ci'])}, Holm p = {p_value(entry['p_holm'])})."
            )
    return sentences or ["No failure is detectably more or less frequent than in base."]


def diversity_sentences(results: Results) -> list[str]:
    """Models whose answers became more or less varied than base's beyond doubt."""
    sentences = []
    meaning = {
        "self_bleu_within": ("answers to one prompt are", "less alike", "more alike"),
        "entropy": ("token choices are", "less varied", "more varied"),
    }
    for name, model in results["models"].items():
        for measure, (subject, fewer, more) in meaning.items():
            found = model["diversity"][measure]
            # Base has nothing to differ from, and earlier checkpoints are not tested.
            if not found or found["p_holm"] is None or found["p_holm"] >= statistics.ALPHA:
                continue
            low, high = found["difference_ci"]
            if low <= 0 <= high:
                continue
            direction = more if found["difference"] > 0 else fewer
            sentences.append(
                f"**{name}**: {subject} {direction} than base's (difference "
                f"{signed(found['difference'])} {span(found['difference_ci'])}, Holm p = "
                f"{p_value(found['p_holm'])})."
            )
    return sentences or ["No model is detectably more or less varied than base."]


def matched_sentence(pair: Results, metric: str) -> str:
    """Two families at one KL; a direction only if Holm's p and the interval agree."""
    first, second = pair["families"]
    low, high = pair["ci"]
    facts = f"{gain(pair['difference'])} [{gain(low)}, {gain(high)}] sd of base by {metric}, "
    facts += f"Holm p = {p_value(pair['p_holm'])}"
    at = f"At {number(pair['kl'])} nats, the most that both reach,"
    if low <= 0 <= high or pair["p_holm"] >= statistics.ALPHA:
        return f"{at} **{first}** and **{second}** show no detectable difference ({facts})."
    direction = "more" if low > 0 else "less"
    return f"{at} **{first}** gains {direction} than **{second}** ({facts})."


def seeds_sentence(family: str, seeds: Results, metric: str) -> str:
    """How a family's training seeds differ."""
    found = seeds[metric]
    low, high = found["ci"]
    return (
        f"**{family}**, {seeds['n']} runs: {gain(found['mean'])} [{gain(low)}, {gain(high)}] sd of "
        f"base by {metric}, sd between runs {number(found['sd'])}."
    )


def judge_sentence(name: str, judge: Results) -> str:
    """How a judge that compares has behaved."""
    facts = {
        "readable": "readable in both orders",
        "consistent": "the orders agree",
        "first": "the answer shown first preferred",
    }
    said = [f"{text} {percent(judge[k])}" for k, text in facts.items() if judge[k] is not None]
    if judge["kappa"] is not None:
        said.append(f"Cohen's kappa with gold {number(judge['kappa'])}")
    return f"Judge `{name}`, {judge['n']} verdicts: {', '.join(said)}."


def control_sentence(name: str, control: Results, primary: str) -> str:
    """A control in words."""
    outcome = "passed" if control["passed"] else "**failed**"
    if control.get("failed_on"):
        outcome += f" on {', '.join(control['failed_on'])}"
    if name == "best_of_n":
        win = control["win_rate"]["proxy"]
        return (
            f"Positive control `best of {control['n']}` {outcome}: base's best sample by the proxy "
            f"wins {rate(win['value'], win['ci'])} against base sampled again, by the proxy (Holm "
            f"p = {p_value(win['p_holm'])}); {percent(control['expected'])} expected."
        )
    win = control["win_rate"][primary]
    return (
        f"A/A control `{name}` {outcome}: base sampled again wins {rate(win['value'], win['ci'])} "
        f"against itself by {primary} (Holm p = {p_value(win['p_holm'])}), at a KL of "
        f"{number(control['kl']['seq'])} nats (must be 0)."
    )
