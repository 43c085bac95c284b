"""Comparisons of models on the same prompts: win rates, rewards, controls, best of n."""

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
    holm_corrected,
    mean_interval,
    sign_flip_test,
)
from rlhf_recipes.evaluation.metrics.verdicts import judged_win_rate
from rlhf_recipes.evaluation.metrics.win_rate import summary, win_rate, win_scores

# One text scored in two batches differs in the last bits, which is not a win.
TIE = 1e-5
BEST_OF_N_FROM = 4


def win_rates(model: ModelSamples, collection: Collection) -> Results:
    """Compute a policy's win rate over base by each metric and judge, and at equal length."""
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


def reward(scores: Array, reference: Array, *, is_base: bool) -> Results:
    """Summarize scores and their paired difference to the reference.

    Returns the mean, the standard deviation `sd` over samples, the interval over prompts, the
    difference (null for base itself), and the gain: the difference in standard deviations of base.

    Args:
        scores: Shape (prompts, samples), as is reference; the numbers of samples may differ.
    """
    scale = float(reference.std(ddof=1))
    unit = "sd of base" if scale > 0 else "reward (base does not vary)"
    scale = scale or 1.0
    paired = difference(scores, reference)
    return {
        "mean": float(scores.mean()),
        "sd": float(scores.std(ddof=1)),
        "ci": mean_interval(scores.mean(axis=1)),
        "difference": None if is_base else paired,
        "gain": {
            "value": paired["mean"] / scale,
            "ci": [end / scale for end in paired["ci"]],
            "unit": unit,
        },
    }


def difference(scores: Array, reference: Array) -> Results:
    """Compute the mean paired difference over prompts, its interval and the sign-flip test's p."""
    gaps = scores.mean(axis=1) - reference.mean(axis=1)
    return {
        "mean": float(gaps.mean()),
        "ci": mean_interval(gaps),
        "p": sign_flip_test(gaps),
        "p_holm": None,
    }


def pairwise(collection: Collection) -> Results:
    """Compare policy with policy on the same prompts, which two intervals against base cannot do.

    Two training seeds of one family are not compared: which of them won says nothing of the method.
    """
    pairs = {
        f"{first.name} vs {second.name}": (first, second)
        for first, second in combinations(collection.finals, 2)
        if first.family != second.family
    }
    rates, differences = {}, {}
    for metric in collection.metrics:
        scores = {name: (a.scores(metric), b.scores(metric)) for name, (a, b) in pairs.items()}
        rates[metric] = holm_corrected({n: win_rate(a, b, TIE) for n, (a, b) in scores.items()})
        differences[metric] = holm_corrected({n: difference(a, b) for n, (a, b) in scores.items()})
    return {
        name: {
            "gold": None,
            "difference": {metric: tests[name] for metric, tests in differences.items()},
            **{metric: tests[name] for metric, tests in rates.items()},
        }
        for name in pairs
    }


def controls(collection: Collection) -> Results:
    """Check the pipeline on two known cases, one without an effect and one with an effect.

    `control`: base sampled again shows no detectable difference to itself, and a KL of exactly 0.
    It passes only if every metric and judge could have shown a difference; otherwise `passed` is
    null. `best_of_n`: base's best of n by the proxy must beat base sampled again, by the proxy;
    without ties it does so in n/(n+1) of the cases.
    """
    base, control = collection.base, collection.control
    if control is None:
        return {}
    judged = {
        judge: rate
        for judge, verdicts in collection.verdicts.items()
        if (rate := judged_win_rate(verdicts, control))
    }
    rates = holm_corrected(
        {m: win_rate(control.scores(m), base.scores(m), TIE) for m in collection.metrics} | judged
    )
    claims = {name: win_claim(rate) for name, rate in rates.items()}
    failed = [name for name, claim in claims.items() if claim in (Claim.ABOVE, Claim.BELOW)]
    failed += ["kl"] if control.values("kl").any() else []
    undecided = [n for n, claim in claims.items() if claim in (Claim.TOO_FEW, Claim.UNREADABLE)]
    for judge, verdicts in collection.verdicts.items():
        is_judged = any(verdict["model"] == CONTROL for verdict in verdicts)
        undecided += [judge] * (is_judged and judge not in rates)
    results: Results = {
        CONTROL: {
            "win_rate": {"gold": None, **rates},
            "kl": kl_summary(control),
            "failed_on": failed,
            "undecided_on": undecided,
            "passed": False if failed else None if undecided else True,
        }
    }
    sizes = best_of_n_sizes(collection)
    if not sizes:
        return results
    return results | {"best_of_n": _positive_control(base, control, collection.metrics, sizes[-1])}


def _positive_control(
    base: ModelSamples, control: ModelSamples, metrics: Sequence[str], n: int
) -> Results:
    proxy = base.scores("proxy")
    wins = {m: best_of_n_wins(proxy, base.scores(m), control.scores(m), n, TIE) for m in metrics}
    rates = holm_corrected({metric: summary(won, single=False) for metric, won in wins.items()})
    claim = win_claim(rates["proxy"])
    return {
        "n": n,
        "expected": n / (n + 1),
        "win_rate": {"gold": None, **rates},
        "kl": {"seq": best_of_n_kl(n), "upper_bound": True},
        "passed": None if claim == Claim.TOO_FEW else claim == Claim.ABOVE,
    }


def best_of_n_sizes(collection: Collection) -> list[int]:
    """List the powers of two up to base's samples per prompt; none below four samples."""
    samples = collection.base.scores("proxy").shape[1]
    return [2**i for i in range(samples.bit_length())] if samples >= BEST_OF_N_FROM else []


def best_of_n_curve(collection: Collection) -> list[Results]:
    """Compute the rewards of base's best of n by the proxy; empty below four samples."""
    proxy = collection.base.scores("proxy")
    rows: list[Results] = []
    for n in best_of_n_sizes(collection):
        by_metric = {}
        for metric in collection.metrics:
            values = collection.base.scores(metric)
            best = best_of_n(proxy, values, n)
            gain = (best - values.mean(axis=1)) / (float(values.std(ddof=1)) or 1.0)
            by_metric[metric] = {
                "mean": float(best.mean()),
                "ci": mean_interval(best),
                "gain": float(gain.mean()),
                "gain_ci": mean_interval(gain),
            }
        bound = best_of_n_kl(n)
        rows.append(
            {"n": n, "kl_bound": bound, "sqrt_kl_bound": float(np.sqrt(bound)), **by_metric}
        )
    return rows
