"""Sentences about results: a table of conditions for each kind, with the numbers filled in.

A condition is a claim (`claims`): the side on which a value lies, if its interval and test agree.
Numbers come from the results as they are, rounded for reading; nothing is computed here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from rlhf_recipes.evaluation.metrics import statistics
from rlhf_recipes.evaluation.metrics.claims import FEWEST_READABLE, Claim, claim, win_claim
from rlhf_recipes.evaluation.metrics.comparisons import Control, PositiveControl, Reward
from rlhf_recipes.evaluation.metrics.diversity import Variety
from rlhf_recipes.evaluation.metrics.failures import Failure
from rlhf_recipes.evaluation.metrics.frontier import FrontierPoint, MatchedRuns
from rlhf_recipes.evaluation.metrics.kl import KL
from rlhf_recipes.evaluation.metrics.length_control import LengthControlled
from rlhf_recipes.evaluation.metrics.over_optimization import ProxyAndGold, gain_claim
from rlhf_recipes.evaluation.metrics.statistics import Correlation, Estimate
from rlhf_recipes.evaluation.metrics.verdicts import JudgeQuality
from rlhf_recipes.evaluation.metrics.win_rate import WinRate
from rlhf_recipes.evaluation.results import BetweenSeeds, Config, EvaluationResults

MOST_NAMED = 3
UNITS = ((3600, "h"), (60, "min"), (1, "s"))
EXTREME = 0.1  # AlpacaEval calls a change of 10 points between the two rates extreme.

COMPARISON = {
    Claim.ABOVE: "**{name}** is **better** than {other}: it wins {facts}.",
    Claim.BELOW: "**{name}** is **worse** than {other}: it wins {facts}.",
    Claim.UNDETECTED: "**{name}** shows no detectable difference from {other}: it wins {facts}."
    "{power}",
    Claim.TOO_FEW: "**{name}** against {other}: {n} prompts are too few to name a direction. It "
    "wins {facts}.",
    Claim.UNREADABLE: "**{name}** against {other}: fewer than {needed} of the verdicts by "
    "{metric} can be read, too few to name a direction. It wins {facts}.",
}
FRONTIER = {
    "dominated by": "is dominated by {models} on {metric}, on the Pareto front in {draws}.",
    "dominated": "is dominated by some model on {metric}, by no single one of them detectably; "
    "on the Pareto front in {draws}.",
    "on it": "is on the {metric} Pareto front in {draws}.",
    "unsettled": "may be on the {metric} Pareto front, in {draws}: these prompts do not settle it.",
    "too few": "is on the {metric} Pareto front in {draws}: {n} prompts are too few to settle it.",
}
# By what may be said of the gain on the proxy and of that on gold.
PROXY_AND_GOLD = {
    (Claim.ABOVE, Claim.BELOW): "is over-optimized: the proxy rose and gold fell",
    (Claim.ABOVE, Claim.ABOVE): "rose on the proxy and on gold",
    (Claim.ABOVE, Claim.UNDETECTED): "rose on the proxy; on gold no change is detectable",
    (Claim.BELOW, Claim.BELOW): "fell on the proxy and on gold",
    (Claim.BELOW, Claim.ABOVE): "fell on the proxy and rose on gold",
    (Claim.BELOW, Claim.UNDETECTED): "fell on the proxy; on gold no change is detectable",
    (Claim.UNDETECTED, Claim.ABOVE): "rose on gold; on the proxy no change is detectable",
    (Claim.UNDETECTED, Claim.BELOW): "fell on gold; on the proxy no change is detectable",
    (Claim.UNDETECTED, Claim.UNDETECTED): "shows no detectable change on the proxy or on gold",
    (Claim.TOO_FEW, Claim.TOO_FEW): "was tried on {n} prompts, too few to name a direction",
}
GAP = {
    Claim.ABOVE: "The proxy's gain is larger than gold's",
    Claim.BELOW: "Gold's gain is larger than the proxy's",
    Claim.UNDETECTED: "No gap between the two is detectable",
    Claim.TOO_FEW: "The gap is not interpreted either",
}
# By what may be said of the win rate as it is, of the shift to that at equal length, and of the
# latter; None: whatever that is.
LENGTH = (
    (Claim.ABOVE, Claim.BELOW, None, "at least part of the lead goes with length"),
    (Claim.ABOVE, Claim.ABOVE, None, "length hides part of the lead"),
    (Claim.BELOW, Claim.ABOVE, None, "at least part of the deficit goes with length"),
    (Claim.BELOW, Claim.BELOW, None, "length hides part of the deficit"),
    (Claim.UNDETECTED, Claim.ABOVE, Claim.ABOVE, "length hides a lead"),
    (Claim.UNDETECTED, Claim.BELOW, Claim.BELOW, "length hides a deficit"),
    (Claim.UNDETECTED, Claim.ABOVE, None, "length lowers the win rate"),
    (Claim.UNDETECTED, Claim.BELOW, None, "length raises the win rate"),
)
FAILURE = {Claim.ABOVE: "more", Claim.BELOW: "less"}
VARIETY = {
    ("self_bleu_within", Claim.ABOVE): "completions of one prompt are more alike",
    ("self_bleu_within", Claim.BELOW): "completions of one prompt are less alike",
    ("entropy", Claim.ABOVE): "token choices are more varied",
    ("entropy", Claim.BELOW): "token choices are less varied",
}
MATCHED = {
    Claim.ABOVE: "{at} **{first}** gains more than **{second}** ({facts}).",
    Claim.BELOW: "{at} **{first}** gains less than **{second}** ({facts}).",
    Claim.UNDETECTED: "{at} **{first}** and **{second}** show no detectable difference ({facts}).",
    Claim.TOO_FEW: "{at} {n} prompts are too few to compare **{first}** and **{second}** "
    "({facts}).",
}
CONTROL = {True: "passed", False: "**failed** on {failed}", None: "could not be decided on {open}"}


def number(value: float) -> str:
    """Format with three significant digits, without an exponent: 52.1, 0.123, 1234."""
    if value == 0:
        return "0"
    # Of the rounded value: 9.998 is 10.0.
    decimals = min(4, max(0, 2 - math.floor(math.log10(float(f"{abs(value):.2e}")))))
    text = f"{value:.{decimals}f}"
    return "0" if float(text) == 0 else text


def signed(value: float) -> str:
    """Format with the sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def gain(value: float) -> str:
    """Format a gain in standard deviations of base."""
    text = f"{value:+.2f}"
    return "+0.00" if text == "-0.00" else text


def percent(fraction: float) -> str:
    """Format a fraction as whole percent."""
    return f"{100 * fraction:.0f}%"


def p_value(p: float | None) -> str:
    """Format with two significant digits: 0.033, 2.2e-13; empty where nothing was tested."""
    return "" if p is None else f"{p:.2g}"


def gain_span(ci: Sequence[float]) -> str:
    """Format an interval of gains."""
    return f"[{gain(ci[0])}, {gain(ci[1])}]"


def span(ci: Sequence[float]) -> str:
    """Format an interval in its own unit."""
    return f"[{number(ci[0])}, {number(ci[1])}]"


def percent_span(ci: Sequence[float]) -> str:
    """Format an interval of fractions in percent."""
    return f"[{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"


def optional(value: float | None) -> str:
    """Format a number that may not be defined."""
    return "undefined" if value is None else number(value)


def estimate(value: Estimate | Variety | None) -> str:
    """Format a value with its interval."""
    return f"{number(value.value)} {span(value.ci)}" if value else "undefined"


def correlation(found: Correlation) -> str:
    """Format a rank correlation with its interval, or say why there is none."""
    if found.value is None or found.ci is None:
        return f"undefined: {found.reason}"
    return f"{number(found.value)} {span(found.ci)}"


def duration(seconds: float) -> str:
    """Format a time in the largest unit it has one of: 45.2 s, 3.25 min, 2.55 h."""
    scale, unit = next((s, u) for s, u in UNITS if seconds >= s or u == "s")
    return f"{number(seconds / scale)} {unit}"


def rate(value: float, ci: Sequence[float]) -> str:
    """Format a fraction, which never stands without its interval: 75% [63, 84]."""
    return f"{percent(value)} {percent_span(ci)}"


def setup_sentence(config: Config) -> str:
    """Say how many prompts there are, and how many completions each model gave to one."""
    policies, base = config.samples_per_prompt, config.base_samples_per_prompt
    each = f"{_completions(policies)} per prompt for each policy"
    if policies == base:
        each = f"{_completions(policies)} per prompt for each model"
    else:
        each += f", {base} for base"
    return f"{config.n_prompts} held-out prompts: {each}."


def _completions(number: int) -> str:
    return "one completion" if number == 1 else f"{number} completions"


def counted(win: WinRate) -> str:
    """Say what a win rate is a fraction of, and the counts it follows from."""
    prompts = f"{win.wins} won, {win.ties} tied, {win.losses} lost"
    pairs = win.pairs
    if pairs is None:
        return f"of {win.n} prompts"
    if pairs.n == win.n:
        return f"of {win.n} prompts ({prompts}; a tie counts one half)"
    return (
        f"of {pairs.n} pairs of completions to {win.n} prompts (pairs: {pairs.wins} won, "
        f"{pairs.ties} tied, {pairs.losses} lost; a tie counts one half; prompts by their "
        f"pairs: {prompts})"
    )


def comparison_sentence(name: str, other: str, win: WinRate, metric: str) -> str:
    """Compare a policy with base or with another policy, by a metric or a judge."""
    facts = f"{rate(win.value, win.ci)} {counted(win)} by {metric}"
    if read := win.readable:
        facts += f", {read.n} of {read.of} verdicts readable"
    facts += f", Holm p = {p_value(win.p_holm)}"
    power = ""
    if win.detectable:
        power = (
            f" A true difference under {100 * win.detectable:.0f} points would be missed more "
            f"than {percent(1 - statistics.POWER)} of the time."
        )
    return COMPARISON[win_claim(win)].format(
        name=name,
        other=other,
        facts=facts,
        power=power,
        n=win.n,
        metric=metric,
        needed=percent(FEWEST_READABLE),
    )


def frontier_state(front: FrontierPoint, prompts: int) -> str:
    """Return which of the sentences about the Pareto front holds."""
    if claim((0, 0), prompts) == Claim.TOO_FEW:
        return "too few"
    if front.dominated:
        return "dominated by" if front.dominated_by else "dominated"
    return "on it" if front.probability >= statistics.CONFIDENCE else "unsettled"


def frontier_sentence(name: str, kl: KL, front: FrontierPoint, metric: str, prompts: int) -> str:
    """Say whether a model is on the Pareto front, and how sure that is."""
    named = front.dominated_by
    more = [f"{len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    sentence = FRONTIER[frontier_state(front, prompts)].format(
        models=listed([*named[:MOST_NAMED], *more]),
        metric=metric,
        draws=f"{percent(front.probability)} of the bootstrap draws",
        n=prompts,
    )
    return f"**{name}** spends {number(kl.seq)} nats per completion {span(kl.ci)} and {sentence}"


def over_optimization_sentence(
    name: str, rewards: Mapping[str, Reward], policy: ProxyAndGold, prompts: int
) -> str:
    """Say how proxy, gold and their gap moved, each as its interval and p allow."""
    proxy, gold = (gain_claim(rewards[metric], prompts) for metric in ("proxy", "gold"))
    gap = claim(policy.gap_ci, prompts, p_holm=policy.gap_p_holm)
    gains = {metric: rewards[metric].gain for metric in ("proxy", "gold")}
    facts = ", ".join(f"{m} {gain(g.value)} {gain_span(g.ci)}" for m, g in gains.items())
    gap_facts = f"proxy minus gold {gain(policy.gap)} {gain_span(policy.gap_ci)}"
    sentence = PROXY_AND_GOLD[proxy, gold].format(n=prompts)
    return f"**{name}** {sentence} ({facts} sd of base). {GAP[gap]} ({gap_facts})."


def length_sentence(name: str, win: WinRate, adjusted: LengthControlled) -> str | None:
    """Say what length does to a win rate, if it is detectable and more than ten points."""
    claims = (
        win_claim(win),
        claim(adjusted.shift.ci, win.n),
        claim(adjusted.ci, win.n, against=0.5),
    )
    if abs(adjusted.shift.value) <= EXTREME:
        return None
    for raw, shift, equal, text in LENGTH:
        if (raw, shift) == claims[:2] and equal in (None, claims[2]):
            low, high = adjusted.shift.ci
            return (
                f"{name}: the win rate is {rate(win.value, win.ci)} as it is and "
                f"{rate(adjusted.value, adjusted.ci)} at equal length, a shift of "
                f"{100 * adjusted.shift.value:+.0f} points [{100 * low:+.0f}, "
                f"{100 * high:+.0f}]: {text}."
            )
    return None


def failure_sentences(failures: Mapping[str, Failure], prompts: int) -> list[str]:
    """Name the failures that are detectably more or less frequent than in base."""
    sentences = []
    for detector, failure in failures.items():
        base = failure.per_model["base"].rate
        for name, entry in failure.per_model.items():
            gap = entry.to_base
            if gap is None or gap.p_holm is None:  # earlier checkpoints are not tested
                continue
            direction = claim(gap.diff_ci, prompts, p_holm=gap.p_holm)
            if direction not in FAILURE:
                continue
            sentences.append(
                f"**{name}** has {FAILURE[direction]} `{detector}` than base: "
                f"{percent(entry.rate)} against {percent(base)} (difference "
                f"{100 * gap.diff_vs_base:+.0f} points {percent_span(gap.diff_ci)}, Holm "
                f"p = {p_value(gap.p_holm)})."
            )
    none = "No failure is detectably more or less frequent than in base."
    return sentences or [_undetected(none, "compare the failures with those of base", prompts)]


def diversity_sentences(results: EvaluationResults) -> list[str]:
    """Name the models whose completions are detectably more or less varied than those of base."""
    sentences, prompts = [], results.config.n_prompts
    for name, model in results.models.items():
        for measure in ("self_bleu_within", "entropy"):
            variety: Variety | None = getattr(model.diversity, measure)
            if variety is None:
                continue
            gap, ci, p_holm = variety.difference, variety.difference_ci, variety.p_holm
            # Base has nothing to differ from, and earlier checkpoints are not tested.
            if gap is None or ci is None or p_holm is None:
                continue
            direction = claim(ci, prompts, p_holm=p_holm)
            if (measure, direction) not in VARIETY:
                continue
            sentences.append(
                f"**{name}**: {VARIETY[measure, direction]} than those of base (difference "
                f"{signed(gap)} {span(ci)}, Holm p = {p_value(p_holm)})."
            )
    none = "No model is detectably more or less varied than base."
    return sentences or [_undetected(none, "compare the variety with that of base", prompts)]


def _undetected(none: str, act: str, prompts: int) -> str:
    few = claim((0, 0), prompts) == Claim.TOO_FEW
    return f"{prompts} prompts are too few to {act}." if few else none


def matched_sentence(pair: MatchedRuns, metric: str, prompts: int) -> str:
    """Compare two families at one KL; a direction is named if Holm's p and the interval agree."""
    first, second = pair.families
    facts = f"{gain(pair.difference)} {gain_span(pair.ci)} sd of base by {metric}, "
    facts += f"Holm p = {p_value(pair.p_holm)}"
    return MATCHED[claim(pair.ci, prompts, p_holm=pair.p_holm)].format(
        at=f"At {number(pair.kl)} nats, the most that both reach,",
        first=first,
        second=second,
        facts=facts,
        n=prompts,
    )


def seeds_sentence(family: str, seeds: BetweenSeeds, metric: str) -> str:
    """Say how the training seeds of a family differ."""
    gains = seeds.by_metric[metric]
    return (
        f"**{family}**, {seeds.n} runs: {gain(gains.mean)} {gain_span(gains.ci)} sd of "
        f"base by {metric}, sd between runs {number(gains.sd)}."
    )


def judge_sentence(name: str, judge: JudgeQuality) -> str:
    """Say how a judge that compares completions behaved."""
    measured = {
        "readable in both orders": judge.readable,
        "the orders agree": judge.consistent,
        "the completion shown first preferred": judge.first,
    }
    facts = [f"{text} {percent(share)}" for text, share in measured.items() if share is not None]
    if judge.kappa is not None:
        facts.append(f"Cohen's kappa with gold {number(judge.kappa)}")
    return f"Judge `{name}`, {judge.n} verdicts: {', '.join(facts)}."


def control_sentence(control: Control | PositiveControl, primary: str) -> str:
    """Say how a control came out, with the numbers of what it failed on."""
    rates = control.win_rate

    def won(metric: str) -> str:
        win = rates[metric]
        return f"{rate(win.value, win.ci)} by {metric} (Holm p = {p_value(win.p_holm)})"

    if isinstance(control, PositiveControl):
        outcome = CONTROL[control.passed].format(failed="proxy", open="proxy")
        return (
            f"Sanity check {outcome}: the best of {control.n} completions of base by the proxy "
            f"against base sampled again wins {won('proxy')}; {percent(control.expected)} "
            "expected without ties."
        )
    failed, undecided = control.failed_on, control.undecided_on
    outcome = CONTROL[control.passed].format(failed=listed(failed), open=listed(undecided))
    shown = [m for m in failed or undecided if rates.get(m)] or [primary]
    return (
        f"Sanity check {outcome}: base sampled again against base wins "
        f"{listed(map(won, shown))}, 50% expected, at a KL of {number(control.kl.seq)} nats, "
        "0 expected."
    )


def listed(names: Iterable[str]) -> str:
    """Join names with commas and a last `and`."""
    *first, last = [*names] or [""]
    return f"{', '.join(first)} and {last}" if first else last
