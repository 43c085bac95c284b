"""Model against model on the same prompts: win rates, tests, controls, and what may be said."""

from itertools import combinations
from typing import Any

import numpy as np

from rlhf_recipes.evaluation import statistics
from rlhf_recipes.evaluation.best_of_n import best_of_n, best_of_n_kl, best_of_n_wins
from rlhf_recipes.evaluation.kl import kl_summary
from rlhf_recipes.evaluation.length_control import length_controlled
from rlhf_recipes.evaluation.samples import CONTROL, Collection, ModelSamples
from rlhf_recipes.evaluation.statistics import Array, holm, mean_interval, sign_flip_test
from rlhf_recipes.evaluation.verdicts import judged_win_rate
from rlhf_recipes.evaluation.win_rate import soft_win_rate, summary, win_rate, win_scores

Results = dict[str, Any]

BETTER, WORSE, UNDECIDED = "better", "worse", "no detectable difference"
# One text scored in two batches differs in the last bits, and that is no win.
TIE = 1e-5
BEST_OF_N_FROM = 4


def verdict(rate: Results) -> str:
    """What may be said of a win rate: a direction only if Holm's p and the interval both agree."""
    low, high = rate["ci"]
    if rate["p_holm"] >= statistics.ALPHA or low <= 0.5 <= high:
        return UNDECIDED
    return BETTER if rate["value"] > 0.5 else WORSE


def correct(tests: list[Results]) -> None:
    """Holm's correction over one family of tests, each with its `p`."""
    for test, p_holm in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p_holm


def win_rates(model: ModelSamples, collection: Collection) -> Results:
    """A policy against base by each metric and judge, the soft rate, the rate at equal length."""
    base, primary = collection.base, collection.primary
    rates: Results = {"gold": None}
    for metric in collection.metrics:
        rates[metric] = win_rate(model.scores(metric), base.scores(metric), TIE)
    for judge, verdicts in collection.verdicts.items():
        rates[judge] = judged_win_rate(verdicts, model)
    lengths = [m.values("n_tokens").mean(axis=1) for m in (model, base)]
    scores = win_scores(model.scores(primary), base.scores(primary), TIE)
    soft = soft_win_rate(model.values("reward"), base.values("reward"))
    return {
        **rates,
        "soft": {"metric": "proxy", **soft},
        "lc": {"metric": primary, **length_controlled(scores, lengths[0] - lengths[1])},
    }


def reward(own: Array, reference: Array, *, is_base: bool) -> Results:
    """Mean, sd over samples, interval over prompts; paired difference; gain in the base's sd."""
    scale = float(reference.std(ddof=1))
    unit = "sd of base" if scale > 0 else "reward (base does not vary)"
    scale = scale or 1.0
    gap = difference(own, reference)
    gain = {"value": gap["mean"] / scale, "ci": [end / scale for end in gap["ci"]], "unit": unit}
    return {
        "mean": float(own.mean()),
        "sd": float(own.std(ddof=1)),
        "ci": list(mean_interval(own.mean(axis=1))),
        "difference": None if is_base else gap,
        "gain": gain,
    }


def difference(own: Array, reference: Array) -> Results:
    """Mean paired difference by prompt, its interval, and the sign-flip test's p."""
    gaps = own.mean(axis=1) - reference.mean(axis=1)
    return {
        "mean": float(gaps.mean()),
        "ci": list(mean_interval(gaps)),
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
    `best_of_n`: base's best of n by the proxy must beat base sampled again, by the proxy; without
    ties it does so in n/(n+1) of the cases.
    """
    if collection.control is None:
        return {}
    rates: Results = {"gold": None}
    for metric in collection.metrics:
        again, once = collection.control.scores(metric), collection.base.scores(metric)
        rates[metric] = win_rate(again, once, TIE)
    for judge, verdicts in collection.verdicts.items():
        if judged := judged_win_rate(verdicts, collection.control):
            rates[judge] = judged
    correct([rate for rate in rates.values() if rate])
    failed = [name for name, rate in rates.items() if rate and verdict(rate) != UNDECIDED]
    failed += ["kl"] if collection.control.values("kl").any() else []
    kl = kl_summary(collection.control)
    found = {CONTROL: {"win_rate": rates, "kl": kl, "failed_on": failed, "passed": not failed}}
    samples = collection.base.scores("proxy").shape[1]
    if samples >= BEST_OF_N_FROM:
        found["best_of_n"] = _positive_control(collection, 2 ** (samples.bit_length() - 1))
    return found


def _positive_control(collection: Collection, n: int) -> Results:
    assert collection.control is not None
    rates: Results = {"gold": None}
    proxy = collection.base.scores("proxy")
    for metric in collection.metrics:
        own, other = collection.base.scores(metric), collection.control.scores(metric)
        rates[metric] = summary(best_of_n_wins(proxy, own, other, n, TIE), single=False)
    correct([rates[metric] for metric in collection.metrics])
    return {
        "n": n,
        "expected": n / (n + 1),
        "win_rate": rates,
        "kl": {"seq": best_of_n_kl(n), "upper_bound": True},
        "passed": verdict(rates["proxy"]) == BETTER,
    }


def best_of_n_curve(collection: Collection) -> list[Results]:
    """The base's best of n by the proxy; nothing is claimed from fewer than four samples."""
    proxy = collection.base.scores("proxy")
    samples = proxy.shape[1]
    if samples < BEST_OF_N_FROM:
        return []
    rows: list[Results] = []
    for n in (2**power for power in range(samples.bit_length())):
        bound = best_of_n_kl(n)
        row: Results = {"n": n, "kl_bound": bound, "sqrt_kl_bound": float(np.sqrt(bound))}
        for metric in collection.metrics:
            values = collection.base.scores(metric)
            best = best_of_n(proxy, values, n)
            scale = float(values.std(ddof=1)) or 1.0
            gain = mean_interval((best - values.mean(axis=1)) / scale)
            row[metric] = {
                "mean": float(best.mean()),
                "ci": list(mean_interval(best)),
                "gain": float(best.mean() - values.mean()) / scale,
                "gain_ci": list(gain),
            }
        rows.append(row)
    return rows
