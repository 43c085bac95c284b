"""Caveats that a reader must know before trusting the results: conditions and sentences."""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS, FEWEST_READABLE, Claim, win_claim
from rlhf_recipes.evaluation.metrics.comparisons import TIE
from rlhf_recipes.evaluation.metrics.outliers import FAR, outliers
from rlhf_recipes.evaluation.metrics.samples import Collection, Record
from rlhf_recipes.evaluation.metrics.win_rate import WinRate
from rlhf_recipes.evaluation.report.sentences import MOST_NAMED, length_sentence, number, percent
from rlhf_recipes.evaluation.results import EvaluationResults, ModelResults

MANY_CUT_OFF = 0.3
MANY_EQUAL = 0.5
FEW_PROMPTS = 50

Facts = dict[str, object]


class Caveat(NamedTuple):
    """A sentence, and the facts of every case in which it holds."""

    text: str
    cases: Callable[[EvaluationResults, Collection], Iterable[Facts]]


def caveats(results: EvaluationResults, collection: Collection) -> list[str]:
    """Return a sentence for everything that limits what the results can show."""
    return [
        caveat.text.format(**facts)
        for caveat in CAVEATS.values()
        for facts in caveat.cases(results, collection)
    ]


def _once(condition: object, **facts: object) -> list[Facts]:
    return [facts] if condition else []


def _models(results: EvaluationResults, holds: Callable[[ModelResults], bool]) -> list[Facts]:
    return [{"name": name} for name, model in results.models.items() if holds(model)]


def _of_one_seed(results: EvaluationResults) -> str:
    families = results.families.items()
    return ", ".join(name for name, family in families if not family.between_seeds)


def _compared(results: EvaluationResults) -> Iterator[tuple[str, str, WinRate]]:
    """Yield every win rate over base with its model and its metric or judge."""
    for name, model in results.models.items():
        for metric in (*results.config.metrics, *results.config.judges):
            if rate := model.win_rate.get(metric):
                yield name, metric, rate


def _all_tied(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    for name, metric, rate in _compared(results):
        if rate.ties == rate.n and rate.value == 0.5:
            yield {"name": name, "metric": metric, "n": rate.n, "tie": f"{TIE:g}"}


def _constant(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    for metric in collection.metrics:
        for model in [collection.base, *collection.finals]:
            scores = model.scores(metric)
            if np.ptp(scores) == 0:
                value = number(float(scores.flat[0]))
                units = " Gains by it are in its own units." * (model is collection.base)
                yield {"name": model.name, "metric": metric, "value": value, "units": units}


def _outliers(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    for metric in collection.metrics:
        for model in collection.models.values():
            scores = model.scores(metric)
            indices = np.flatnonzero(outliers(scores))
            if not len(indices):
                continue
            named = [
                f"`{model.flat[i]['id']}` scores {number(float(scores.flat[i]))}"
                for i in indices[:MOST_NAMED]
            ]
            more = [f"{len(indices) - MOST_NAMED} more do so"] * (len(indices) > MOST_NAMED)
            yield {
                "name": model.name,
                "metric": metric,
                "named": ", ".join([*named, *more]),
                "median": number(float(np.median(scores))),
                "far": f"{FAR:.0f}",
            }


def _equal_completions(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    models = [collection.base, *collection.finals, *filter(None, [collection.control])]
    for first, second in combinations(models, 2):
        rows = zip(first.records, second.records, strict=True)
        equal = np.mean([_same(a[0], b[0]) for a, b in rows])
        if equal > MANY_EQUAL:
            yield {"first": first.name, "second": second.name, "equal": percent(float(equal))}


def _same(first: Record, second: Record) -> bool:
    return bool(first["response"].strip()) and first["response"] == second["response"]


def _length(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    for model in collection.finals:
        rates = results.models[model.name].win_rate
        if rates.lc and (
            sentence := length_sentence(model.name, rates[collection.primary], rates.lc)
        ):
            yield {"sentence": sentence}


def _no_overlap(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    for name, model in results.models.items():
        if (lc := model.win_rate.lc) and not lc.overlaps:
            longer = lc.longer > 0.5
            part = percent(lc.longer if longer else 1 - lc.longer)
            yield {"name": name, "side": "longer" if longer else "not longer", "part": part}


def _cut_off(results: EvaluationResults, collection: Collection) -> list[Facts]:
    cut_off = {n: m.failures["truncated"].rate for n, m in results.models.items()}
    rates = ", ".join(f"{name} {percent(rate)}" for name, rate in cut_off.items())
    return _once(max(cut_off.values()) > MANY_CUT_OFF, rates=rates)


def _unreadable(results: EvaluationResults, collection: Collection) -> Iterator[Facts]:
    for judge, verdicts in collection.verdicts.items():
        n, missing = len(verdicts), sum(not verdict["readable"] for verdict in verdicts)
        refused = [
            name
            for name, metric, rate in _compared(results)
            if metric == judge and win_claim(rate) == Claim.UNREADABLE
        ]
        refused += [
            model.name
            for model in collection.finals
            if results.models[model.name].win_rate.get(judge) is None
        ]
        if missing:
            needed = f"fewer than {percent(FEWEST_READABLE)} can be read"
            some = f" Nothing is said of {', '.join(refused)}, where {needed}." if refused else ""
            yield {"judge": judge, "missing": missing, "n": n, "refused": some}


CAVEATS = {
    "start": Caveat(
        "`base` is the adapter in {start}, from which the policies started: win rates, gains and "
        "KL are measured from it. `bare_base` is the model below it.",
        lambda _, collection: _once(
            collection.facts.get("reference"), start=collection.facts.get("reference")
        ),
    ),
    "few prompts": Caveat(
        "{n} prompts are few: only large differences can be seen (`detectable` says how large).",
        lambda results, _: _once(
            FEWEST_PROMPTS <= results.config.n_prompts < FEW_PROMPTS, n=results.config.n_prompts
        ),
    ),
    "too few prompts": Caveat(
        "{n} prompts are too few: below {fewest} no direction is named, because an interval "
        "from so few holds the truth less often than it says.",
        lambda results, _: _once(
            results.config.n_prompts < FEWEST_PROMPTS,
            n=results.config.n_prompts,
            fewest=FEWEST_PROMPTS,
        ),
    ),
    "repeated prompts": Caveat(
        "{repeated} prompts are another one but for case and spaces, and are left out: counted "
        "twice, they would make the intervals too narrow.",
        lambda results, collection: _once(collection.repeated, repeated=collection.repeated),
    ),
    "training prompts": Caveat(
        "{overlap} of the prompts are training prompts: results on them are flattered.",
        lambda _, collection: _once(
            collection.facts.get("prompts_in_training"),
            overlap=collection.facts.get("prompts_in_training"),
        ),
    ),
    "no gold": Caveat(
        "No gold judge: gold is null, and claims rest on the reward that was trained on.",
        lambda results, collection: _once(collection.primary == "proxy"),
    ),
    "one seed": Caveat(
        "One training seed of {families}: the intervals do not cover what another seed would "
        "change.",
        lambda results, _: _once(families := _of_one_seed(results), families=families),
    ),
    "k1": Caveat(
        "{name}: the exact KL and its sampled estimate differ by more than three joint standard "
        "errors. The samples may not come from the policy whose logits were used.",
        lambda results, _: _models(results, lambda model: not model.kl.k1_agrees),
    ),
    "empty": Caveat(
        "{name}: every completion is empty. Its rewards are those of nothing.",
        lambda results, _: _models(results, lambda model: model.failures["empty"].rate == 1),
    ),
    "constant": Caveat(
        "{name}: every completion scores {value} by {metric}.{units}",
        _constant,
    ),
    "all tied": Caveat(
        "{name}: all {n} prompts tie with base by {metric} (differences up to {tie} are ties). "
        "Either nothing changed, or the judge does not see it.",
        _all_tied,
    ),
    "outliers": Caveat(
        "{name}: {named} by {metric}, over {far} robust standard deviations from the median "
        "{median}. Means, gains and their intervals rest on that; win rates do not.",
        _outliers,
    ),
    "equal completions": Caveat(
        "{first} and {second} give the same completion to {equal} of the prompts: one may be a "
        "copy of the other, or an adapter may have changed nothing.",
        _equal_completions,
    ),
    "length": Caveat("{sentence}", _length),
    "no overlap": Caveat(
        "{name}: its completions are {side} than base's on {part} of the prompts. The win rate at "
        "equal length is an extrapolation.",
        _no_overlap,
    ),
    "cut off": Caveat(
        "Many completions were cut off at the length limit ({rates}): rewards and KL are those of "
        "the cut-off text.",
        _cut_off,
    ),
    "unreadable verdicts": Caveat(
        "{judge}: {missing} of {n} verdicts cannot be read. They are missing data and are left "
        "out, which may favor one side.{refused}",
        _unreadable,
    ),
    "no control": Caveat(
        "No control: base was not sampled twice, so the pipeline is not checked by A/A.",
        lambda results, collection: _once(not results.controls.control),
    ),
    "failed control": Caveat(
        "control: the A/A control failed. Base against itself must win half and have no KL; by "
        "chance alone one control in twenty fails.",
        lambda results, _: _once((control := results.controls.control) and control.passed is False),
    ),
    "failed positive control": Caveat(
        "best_of_n: the positive control failed. The best of base's own samples by the proxy does "
        "not win detectably by the proxy: there are too few prompts or the proxy hardly varies.",
        lambda results, _: _once((best := results.controls.best_of_n) and best.passed is False),
    ),
}
