"""Caveats: sentences that a reader must know before trusting the results."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS, FEWEST_READABLE, Claim, win_claim
from rlhf_recipes.evaluation.metrics.comparisons import TIE
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.metrics.statistics import FAR, outliers
from rlhf_recipes.evaluation.report.sentences import MOST_NAMED, length_sentence, number, percent
from rlhf_recipes.evaluation.results import EvaluationResults

MANY_CUT_OFF = 0.3
MANY_EQUAL = 0.5
FEW_PROMPTS = 50


def caveats(results: EvaluationResults, collection: Collection) -> list[str]:
    """Return a sentence for everything that limits what the results can show."""
    return [
        *_of_the_prompts(results, collection),
        *_of_each_model(results),
        *_of_the_scores(collection),
        *_of_the_completions(results, collection),
        *_of_the_judges(results, collection),
        *_of_the_controls(results),
    ]


def _of_the_prompts(results: EvaluationResults, collection: Collection) -> list[str]:
    n, start = results.config.n_prompts, collection.facts.get("reference")
    overlap = collection.facts.get("prompts_in_training")
    one_seed = [name for name, family in results.families.items() if not family.between_seeds]
    conditions = (
        (
            start,
            f"`base` is the adapter in {start}, from which the policies started: win rates, gains "
            "and KL are measured from it. `bare_base` is the model below it.",
        ),
        (
            FEWEST_PROMPTS <= n < FEW_PROMPTS,
            f"{n} prompts are few: only large differences can be seen (`detectable` says how "
            "large).",
        ),
        (
            n < FEWEST_PROMPTS,
            f"{n} prompts are too few: below {FEWEST_PROMPTS} no direction is named, because an "
            "interval from so few holds the truth less often than it says.",
        ),
        (
            collection.repeated,
            f"{collection.repeated} prompts are another one but for case and spaces, and are left "
            "out: counted twice, they would make the intervals too narrow.",
        ),
        (
            overlap,
            f"{overlap} of the prompts are training prompts: results on them are flattered.",
        ),
        (
            collection.primary == "proxy",
            "No gold judge: gold is null, and claims rest on the reward that was trained on.",
        ),
        (
            one_seed,
            f"One training seed of {', '.join(one_seed)}: the intervals do not cover what another "
            "seed would change.",
        ),
    )
    return [sentence for holds, sentence in conditions if holds]


def _of_each_model(results: EvaluationResults) -> Iterator[str]:
    for name, model in results.models.items():
        lc = model.win_rate.lc
        longer = lc.longer if lc else 0.0
        side = "longer" if longer > 0.5 else "not longer"
        rates = {
            m: model.win_rate.get(m) for m in (*results.config.metrics, *results.config.judges)
        }
        conditions = [
            (
                not model.kl.k1_agrees,
                "the exact KL and its sampled estimate differ by more than three joint standard "
                "errors. The samples may not come from the policy whose logits were used.",
            ),
            (
                model.failures["empty"].rate == 1,
                "every completion is empty. Its rewards are those of nothing.",
            ),
            (
                lc and not lc.overlaps,
                f"its completions are {side} than base's on {percent(max(longer, 1 - longer))} of "
                "the prompts. The win rate at equal length is an extrapolation.",
            ),
        ] + [
            (
                rate.ties == rate.n and rate.value == 0.5,
                f"all {rate.n} prompts tie with base by {metric} (differences up to {TIE:g} are "
                "ties). Either nothing changed, or the judge does not see it.",
            )
            for metric, rate in rates.items()
            if rate
        ]
        yield from (f"{name}: {sentence}" for holds, sentence in conditions if holds)


def _of_the_scores(collection: Collection) -> Iterator[str]:
    for metric in collection.metrics:
        for name, model in collection.models.items():
            scores = model.scores(metric)
            if np.ptp(scores) == 0:
                units = " Gains by it are in its own units." if name == "base" else ""
                value = number(float(scores.flat[0]))
                yield f"{name}: every completion scores {value} by {metric}.{units}"
            far = np.flatnonzero(outliers(scores))
            if len(far):
                facts = [f"`{model.flat[i]['id']}` scores {number(scores.flat[i])}" for i in far]
                more = [f"{len(far) - MOST_NAMED} more do so"] * (len(far) > MOST_NAMED)
                yield (
                    f"{name}: {', '.join([*facts[:MOST_NAMED], *more])} by {metric}, over "
                    f"{FAR:.0f} robust standard deviations from the median "
                    f"{number(float(np.median(scores)))}. Means, gains and their intervals rest on "
                    "that; win rates do not."
                )


def _of_the_completions(results: EvaluationResults, collection: Collection) -> Iterator[str]:
    models = [collection.base, *collection.finals, *filter(None, [collection.control])]
    for first, second in combinations(models, 2):
        texts = [
            (a[0]["response"], b[0]["response"])
            for a, b in zip(first.records, second.records, strict=True)
        ]
        equal = float(np.mean([a == b and bool(a.strip()) for a, b in texts]))
        if equal > MANY_EQUAL:
            yield (
                f"{first.name} and {second.name} give the same completion to {percent(equal)} of "
                "the prompts: one may be a copy of the other, or an adapter may have changed "
                "nothing."
            )
    for name in results.finals:
        rates = results.models[name].win_rate
        if rates.lc and (shift := length_sentence(name, rates[collection.primary], rates.lc)):
            yield shift
    cut_off = {name: model.failures["truncated"].rate for name, model in results.models.items()}
    if max(cut_off.values()) > MANY_CUT_OFF:
        rates_of_all = ", ".join(f"{name} {percent(rate)}" for name, rate in cut_off.items())
        yield (
            f"Many completions were cut off at the length limit ({rates_of_all}): rewards and KL "
            "are those of the cut-off text."
        )


def _of_the_judges(results: EvaluationResults, collection: Collection) -> Iterator[str]:
    for judge, verdicts in collection.verdicts.items():
        missing = sum(not verdict["readable"] for verdict in verdicts)
        rates = {name: results.models[name].win_rate.get(judge) for name in results.models}
        refused = [n for n, rate in rates.items() if rate and win_claim(rate) == Claim.UNREADABLE]
        refused += [name for name in results.finals if rates[name] is None]
        needed = f"fewer than {percent(FEWEST_READABLE)} can be read"
        of_them = f" Nothing is said of {', '.join(refused)}, where {needed}." if refused else ""
        if missing:
            yield (
                f"{judge}: {missing} of {len(verdicts)} verdicts cannot be read. They are missing "
                f"data and are left out, which may favor one side.{of_them}"
            )


def _of_the_controls(results: EvaluationResults) -> list[str]:
    control, best = results.controls.control, results.controls.best_of_n
    conditions = (
        (
            not control,
            "No control: base was not sampled twice, so the pipeline is not checked by A/A.",
        ),
        (
            control and control.passed is False,
            "control: the A/A control failed. Base against itself must win half and have no KL; by "
            "chance alone one control in twenty fails.",
        ),
        (
            best and best.passed is False,
            "best_of_n: the positive control failed. The best of base's own samples by the proxy "
            "does not win detectably by the proxy: there are too few prompts or the proxy hardly "
            "varies.",
        ),
    )
    return [sentence for holds, sentence in conditions if holds]
