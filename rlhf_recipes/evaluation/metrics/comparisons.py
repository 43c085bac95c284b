"""Model against model on the same prompts: win rates, tests, controls, and what may be said."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from rlhf_recipes.evaluation.arguments import CONTROL
from rlhf_recipes.evaluation.metrics.best_of_n import best_of_n, best_of_n_kl, best_of_n_wins
from rlhf_recipes.evaluation.metrics.claims import Claim, win_claim
from rlhf_recipes.evaluation.metrics.kl import kl_summary
from rlhf_recipes.evaluation.metrics.length_control import length_controlled
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples, Results
from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    correct,
    mean_interval,
    sign_flip_test,
)
from rlhf_recipes.evaluation.metrics.verdicts import judged_win_rate
from rlhf_recipes.evaluation.metrics.win_rate import summary, win_rate, win_scores

# One text scored in two batches differs in the last bits, and that is no win.
TIE = 1e-5
BEST_OF_N_FROM = 4


def win_rates(model: ModelSamples, collection: Collection) -> Results:
    """A policy against base by each metric and judge, and at equal length."""
    base, primary = collection.base, collection.primary
    rates: Results = {"gold": None}
    for metric in collection.metrics:
        rates[metric] = win_rate(model.scores(metric), base.scores(metric), TIE)
    for judge, verdicts in collection.verdicts.items():
        rates[judge] = judged_win_rate(verdicts, model)
    lengths = [m.values("n_tokens").mean(axis=1) for m in (model, base)]
    scores = win_scores(model.scores(primary), base.scores(primary), TIE)
    controlled = length_controlled(scores, lengths[0] - lengths[1])
    return {**rates, "lc": {"metric": primary, **controlled}}


def reward(own: Array, reference: Array, *, is_base: bool) -> Results:
    """Mean, sd over samples, interval over prompts; paired difference; gain in the base's sd."""
    scale = float(reference.std(ddof=1))
    unit = "sd of base" if scale > 0 else "reward (base does not vary)"
    scale = scale or 1.0
    gap = difference(own, reference)
    return {
        "mean": float(own.mean()),
        "sd": float(own.std(ddof=1)),
        "ci": mean_interval(own.mean(axis=1)),
        "difference": None if is_base else gap,
        "gain": {
            "value": gap["mean"] / scale,
            "ci": [end / scale for end in gap["ci"]],
            "unit": unit,
        },
    }


def difference(own: Array, reference: Array) -> Results:
    """Mean paired difference by prompt, its interval, and the sign-flip test's p."""
    gaps = own.mean(axis=1) - reference.mean(axis=1)
    return {
        "mean": float(gaps.mean()),
        "ci": mean_interval(gaps),
        "p": sign_flip_test(gaps),
        "p_holm": None,
    }


def pairwise(collection: Collection) -> Results:
    """Policy against policy on the same prompts, never by comparing two intervals against base.

    Two training seeds of one family are not compared: which of them won is no finding.
    """
    pairs: Results = {}
    for first, second in combinations(collection.finals, 2):
        if first.family == second.family:
            continue
        pair: Results = {"gold": None, "difference": {}}
        for metric in collection.metrics:
            own, other = first.scores(metric), second.scores(metric)
            pair[metric] = win_rate(own, other, TIE)
            pair["difference"][metric] = difference(own, other)
        pairs[f"{first.name} vs {second.name}"] = pair
    for metric in collection.metrics:
        correct([pair[metric] for pair in pairs.values()])
        correct([pair["difference"][metric] for pair in pairs.values()])
    return pairs


def controls(collection: Collection) -> Results:
    """What must come out if the pipeline is right, one control without and one with an effect.

    `control`: base sampled again shows no detectable difference to itself, and a KL of exactly 0.
    It passes only if every metric and judge could have shown one; `passed` is null otherwise.
    `best_of_n`: base's best of n by the proxy must beat base sampled again, by the proxy; without
    ties it does so in n/(n+1) of the cases.
    """
    base, control = collection.base, collection.control
    if control is None:
        return {}
    rates = {m: win_rate(control.scores(m), base.scores(m), TIE) for m in collection.metrics}
    for judge, verdicts in collection.verdicts.items():
        if judged := judged_win_rate(verdicts, control):
            rates[judge] = judged
    correct(list(rates.values()))
    claims = {name: win_claim(rate) for name, rate in rates.items()}
    failed = [name for name, found in claims.items() if found in (Claim.ABOVE, Claim.BELOW)]
    failed += ["kl"] if control.values("kl").any() else []
    undecided = [n for n, found in claims.items() if found in (Claim.TOO_FEW, Claim.UNREADABLE)]
    for judge, verdicts in collection.verdicts.items():
        asked = any(verdict["model"] == CONTROL for verdict in verdicts)
        undecided += [judge] * (asked and judge not in rates)
    found: Results = {
        CONTROL: {
            "win_rate": {"gold": None, **rates},
            "kl": kl_summary(control),
            "failed_on": failed,
            "undecided_on": undecided,
            "passed": False if failed else None if undecided else True,
        }
    }
    if sizes := best_of_n_sizes(collection):
        found["best_of_n"] = _positive_control(base, control, collection.metrics, sizes[-1])
    return found


def _positive_control(
    base: ModelSamples, control: ModelSamples, metrics: Sequence[str], n: int
) -> Results:
    proxy = base.scores("proxy")
    wins = {m: best_of_n_wins(proxy, base.scores(m), control.scores(m), n, TIE) for m in metrics}
    rates = {metric: summary(won, single=False) for metric, won in wins.items()}
    correct(list(rates.values()))
    found = win_claim(rates["proxy"])
    return {
        "n": n,
        "expected": n / (n + 1),
        "win_rate": {"gold": None, **rates},
        "kl": {"seq": best_of_n_kl(n), "upper_bound": True},
        "passed": None if found == Claim.TOO_FEW else found == Claim.ABOVE,
    }


def best_of_n_sizes(collection: Collection) -> list[int]:
    """The powers of two up to base's samples a prompt, none if these are fewer than four."""
    samples = collection.base.scores("proxy").shape[1]
    return [2**i for i in range(samples.bit_length())] if samples >= BEST_OF_N_FROM else []


def best_of_n_curve(collection: Collection) -> list[Results]:
    """The base's best of n by the proxy; nothing is claimed from fewer than four samples."""
    proxy = collection.base.scores("proxy")
    rows: list[Results] = []
    for n in best_of_n_sizes(collection):
        bound = best_of_n_kl(n)
        row: Results = {"n": n, "kl_bound": bound, "sqrt_kl_bound": float(np.sqrt(bound))}
        for metric in collection.metrics:
            values = collection.base.scores(metric)
            best = best_of_n(proxy, values, n)
            gain = (best - values.mean(axis=1)) / (float(values.std(ddof=1)) or 1.0)
            row[metric] = {
                "mean": float(best.mean()),
                "ci": mean_interval(best),
                "gain": float(gain.mean()),
                "gain_ci": mean_interval(gain),
            }
        rows.append(row)
    return rows
