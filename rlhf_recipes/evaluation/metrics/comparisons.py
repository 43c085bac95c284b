"""Comparisons of models on the same prompts: win rates, rewards, controls, best of n."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from rlhf_recipes.evaluation.arguments import CONTROL
from rlhf_recipes.evaluation.metrics.best_of_n import best_of_n, best_of_n_kl, best_of_n_wins
from rlhf_recipes.evaluation.metrics.claims import Claim, win_claim
from rlhf_recipes.evaluation.metrics.kl import KL, kl_summary
from rlhf_recipes.evaluation.metrics.length_control import LengthControlled, length_controlled
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.statistics import (
    Array,
    Interval,
    holm_corrected,
    mean_interval,
    sign_flip_test,
)
from rlhf_recipes.evaluation.metrics.typed_json import FLAT, AtLeast0, Count, Share
from rlhf_recipes.evaluation.metrics.verdicts import judged_win_rate
from rlhf_recipes.evaluation.metrics.win_rate import (
    WinRate,
    WinRates,
    summary,
    win_rate,
    win_scores,
)

# One text scored in two batches differs in the last bits, which is not a win.
TIE = 1e-5
BEST_OF_N_FROM = 4


@dataclass(frozen=True)
class OverBase(WinRates):
    """Win rates of a model over base, and that at equal length; all are None for base itself."""

    lc: LengthControlled | None


@dataclass(frozen=True)
class Difference:
    """A mean paired difference over prompts, with its interval and the sign-flip test's p."""

    mean: float
    ci: Interval
    p: Share
    p_holm: Share | None


@dataclass(frozen=True)
class Gain:
    """A mean difference to base in `unit`: standard deviations of base, if it varies."""

    value: float
    ci: Interval
    unit: str


@dataclass(frozen=True)
class Reward:
    """Scores of a model by one metric.

    Attributes:
        mean: With its interval `ci` over prompts.
        sd: Standard deviation over samples.
        difference: To base; None for base itself.
        gain: That difference in standard deviations of base.
    """

    mean: float
    sd: AtLeast0
    ci: Interval
    difference: Difference | None
    gain: Gain

    @property
    def p_holm(self) -> float | None:
        """The corrected p of the difference; None where nothing is claimed."""
        return self.difference.p_holm if self.difference else None


@dataclass(frozen=True)
class Pair(WinRates):
    """Win rates of one policy over another, and the differences in reward by metric."""

    difference: Mapping[str, Difference]


@dataclass(frozen=True)
class Control:
    """Base sampled again against base.

    Attributes:
        failed_on: Metrics and judges that show a difference, and `kl` unless every KL is 0.
        undecided_on: Those that could not have shown one.
        passed: None if nothing failed and something is undecided.
    """

    win_rate: WinRates
    kl: KL
    failed_on: Sequence[str]
    undecided_on: Sequence[str]
    passed: bool | None


@dataclass(frozen=True)
class PositiveControl:
    """Base's best of n by the proxy against base sampled again.

    Attributes:
        expected: Win rate by a proxy without ties.
        kl_bound: Upper bound of its KL in nats per completion.
        passed: Whether it wins by the proxy; None with too few prompts.
    """

    n: Count
    expected: Share
    win_rate: WinRates
    kl_bound: AtLeast0
    passed: bool | None


@dataclass(frozen=True)
class Controls:
    """Two known cases, without and with an effect; left out where there are no samples for it."""

    control: Control | None = None
    best_of_n: PositiveControl | None = None


@dataclass(frozen=True)
class BestOfNGain:
    """Mean score of the best of n, and its gain over base in standard deviations of base."""

    mean: float
    ci: Interval
    gain: float
    gain_ci: Interval


@dataclass(frozen=True)
class BestOfN:
    """Base's best of n by the proxy, by metric, and what bounds its KL."""

    n: Count
    kl_bound: AtLeast0
    sqrt_kl_bound: AtLeast0
    by_metric: Mapping[str, BestOfNGain] = field(metadata=FLAT)


def win_rates(collection: Collection) -> dict[str, OverBase]:
    """Compute each policy's win rate over base by each metric and judge, and at equal length.

    p-values are corrected over the final policies within a metric. All are None for base itself.
    """
    base, policies = collection.base, collection.policies
    finals = [model.name for model in collection.finals]
    tests: dict[str, dict[str, WinRate | None]] = {"gold": {}}
    for metric in collection.metrics:
        scores = {m.name: m.scores(metric) for m in policies}
        tests[metric] = {n: win_rate(s, base.scores(metric), TIE) for n, s in scores.items()}
    for judge, verdicts in collection.verdicts.items():
        tests[judge] = {m.name: judged_win_rate(verdicts, m) for m in policies}
    corrected = {metric: holm_corrected(rates, finals) for metric, rates in tests.items()}
    return {
        name: OverBase(
            {metric: rates.get(name) for metric, rates in corrected.items()},
            None if model is base else _at_equal_length(model, base, collection.primary),
        )
        for name, model in collection.models.items()
    }


def _at_equal_length(model: ModelSamples, base: ModelSamples, metric: str) -> LengthControlled:
    lengths = [m.values("n_tokens").mean(axis=1) for m in (model, base)]
    scores = win_scores(model.scores(metric), base.scores(metric), TIE)
    return length_controlled(scores, lengths[0] - lengths[1], metric)


def rewards(collection: Collection) -> dict[str, dict[str, Reward]]:
    """Compute the rewards of every model by metric, p-values corrected as for win rates."""
    base, finals = collection.base, [model.name for model in collection.finals]
    by_model: dict[str, dict[str, Reward]] = {name: {} for name in collection.models}
    for metric in collection.metrics:
        of_base = base.scores(metric)
        uncorrected = {
            name: reward(model.scores(metric), of_base, is_base=model is base)
            for name, model in collection.models.items()
        }
        differences = {name: reward.difference for name, reward in uncorrected.items()}
        for name, corrected in holm_corrected(differences, finals).items():
            by_model[name][metric] = replace(uncorrected[name], difference=corrected)
    return by_model


def reward(scores: Array, reference: Array, *, is_base: bool) -> Reward:
    """Summarize scores and their paired difference to the reference.

    Args:
        scores: Shape (prompts, samples), as is reference; the numbers of samples may differ.
    """
    scale = float(reference.std(ddof=1))
    unit = "sd of base" if scale > 0 else "reward (base does not vary)"
    scale = scale or 1.0
    paired = difference(scores, reference)
    low, high = paired.ci
    return Reward(
        mean=float(scores.mean()),
        sd=float(scores.std(ddof=1)),
        ci=mean_interval(scores.mean(axis=1)),
        difference=None if is_base else paired,
        gain=Gain(paired.mean / scale, Interval(low / scale, high / scale), unit),
    )


def difference(scores: Array, reference: Array) -> Difference:
    """Compute the mean paired difference over prompts, its interval and the sign-flip test's p."""
    gaps = scores.mean(axis=1) - reference.mean(axis=1)
    return Difference(float(gaps.mean()), mean_interval(gaps), sign_flip_test(gaps), p_holm=None)


def pairwise(collection: Collection) -> dict[str, Pair]:
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
        name: Pair(
            {"gold": None, **{metric: tests[name] for metric, tests in rates.items()}},
            {metric: tests[name] for metric, tests in differences.items()},
        )
        for name in pairs
    }


def controls(collection: Collection) -> Controls:
    """Check the pipeline on two known cases, one without an effect and one with an effect.

    `control`: base sampled again shows no detectable difference to itself, and a KL of exactly 0.
    It passes only if every metric and judge could have shown a difference; otherwise `passed` is
    null. `best_of_n`: base's best of n by the proxy must beat base sampled again, by the proxy;
    without ties it does so in n/(n+1) of the cases.
    """
    base, control = collection.base, collection.control
    if control is None:
        return Controls()
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
    passed = False if failed else None if undecided else True
    again = WinRates({"gold": None, **rates})
    sizes = best_of_n_sizes(collection)
    return Controls(
        Control(again, kl_summary(control), failed, undecided, passed),
        _positive_control(base, control, collection.metrics, sizes[-1]) if sizes else None,
    )


def _positive_control(
    base: ModelSamples, control: ModelSamples, metrics: Sequence[str], n: int
) -> PositiveControl:
    proxy = base.scores("proxy")
    wins = {m: best_of_n_wins(proxy, base.scores(m), control.scores(m), n, TIE) for m in metrics}
    rates = holm_corrected({metric: summary(won, single=False) for metric, won in wins.items()})
    claim = win_claim(rates["proxy"])
    return PositiveControl(
        n=n,
        expected=n / (n + 1),
        win_rate=WinRates({"gold": None, **rates}),
        kl_bound=best_of_n_kl(n),
        passed=None if claim == Claim.TOO_FEW else claim == Claim.ABOVE,
    )


def best_of_n_sizes(collection: Collection) -> list[int]:
    """List the powers of two up to base's samples per prompt; none below four samples."""
    samples = collection.base.scores("proxy").shape[1]
    return [2**i for i in range(samples.bit_length())] if samples >= BEST_OF_N_FROM else []


def best_of_n_curve(collection: Collection) -> list[BestOfN]:
    """Compute the rewards of base's best of n by the proxy; empty below four samples."""
    proxy = collection.base.scores("proxy")
    rows = []
    for n in best_of_n_sizes(collection):
        by_metric = {}
        for metric in collection.metrics:
            values = collection.base.scores(metric)
            best = best_of_n(proxy, values, n)
            gain = (best - values.mean(axis=1)) / (float(values.std(ddof=1)) or 1.0)
            by_metric[metric] = BestOfNGain(
                mean=float(best.mean()),
                ci=mean_interval(best),
                gain=float(gain.mean()),
                gain_ci=mean_interval(gain),
            )
        bound = best_of_n_kl(n)
        rows.append(BestOfN(n, bound, float(np.sqrt(bound)), by_metric))
    return rows
