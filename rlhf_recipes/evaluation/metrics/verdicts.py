"""Win rates and quality of the judges that compare a completion with base's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples, Record
from rlhf_recipes.evaluation.metrics.statistics import Array
from rlhf_recipes.evaluation.metrics.typed_json import Count, Share
from rlhf_recipes.evaluation.metrics.win_rate import Readable, WinRate, summary


@dataclass(frozen=True)
class JudgeQuality:
    """How consistent a judge is over all its verdicts, and how well it agrees with gold.

    Attributes:
        n: Number of verdicts.
        readable: Fraction with a readable reply to both orders.
        consistent: Fraction of those on which the orders agree.
        first: Fraction of readable replies for the completion shown first, a tie one half. A judge
            that always prefers it has first = 1, consistent = 0 and a win rate of one half.
        kappa: Cohen's, of win, tie and loss with those of gold, if there is gold.
    """

    n: Count
    readable: Share | None
    consistent: Share | None
    first: Share | None
    kappa: float | None


def judged_win_rate(verdicts: Sequence[Record], model: ModelSamples) -> WinRate | None:
    """Compute the win rate over base by a judge's readable verdicts.

    An unreadable verdict is missing, not a tie: prompts without a readable one are left out. With
    several verdicts per prompt, a prompt weighs as much as it has readable ones, so that `value` is
    the mean over these. Returns None unless every prompt was judged, and two have a readable one.
    """
    outcomes: dict[int, list[float]] = {row[0]["prompt_id"]: [] for row in model.records}
    judged = dict.fromkeys(outcomes, 0)
    for verdict in verdicts:
        if verdict["model"] == model.name:
            judged[verdict["prompt_id"]] += 1
            outcomes[verdict["prompt_id"]] += [verdict["outcome"]] * bool(verdict["readable"])
    readable = [np.array(row) for row in outcomes.values() if row]
    if not all(judged.values()) or len(readable) < 2:
        return None
    sizes = np.array([len(row) for row in readable])
    means = np.array([np.mean(row) for row in readable])
    weighted = 0.5 + sizes / sizes.mean() * (means - 0.5)
    single = max(judged.values()) == 1
    rate = summary(weighted, single=single, outcomes=np.concatenate(readable))
    n, of = int(sizes.sum()), sum(judged.values())
    return replace(rate, readable=Readable(n, of, n / of))


def judge_quality(
    verdicts: Sequence[Record], collection: Collection, epsilon: float = 0.0
) -> JudgeQuality:
    """Measure how consistent a judge is over all its verdicts, and how well it agrees with gold."""
    readable = [v for v in verdicts if v["readable"]]
    for_first = [preference for v in readable for preference in (v["first"], 1 - v["second"])]
    return JudgeQuality(
        n=len(verdicts),
        readable=_mean([float(v["readable"]) for v in verdicts]),
        consistent=_mean([float(v["first"] == v["second"]) for v in readable]),
        first=_mean(for_first),
        kappa=_agreement(verdicts, collection, epsilon),
    )


def cohens_kappa(first: Array, second: Array) -> float | None:
    """Compute Cohen's kappa (p_o - p_e) / (1 - p_e), with p_e the agreement expected by chance.

    None where both give one and the same label throughout.
    """
    values = np.union1d(first, second)
    chance = sum(float(np.mean(first == v) * np.mean(second == v)) for v in values)
    return float((np.mean(first == second) - chance) / (1 - chance)) if chance < 1 else None


def _agreement(verdicts: Sequence[Record], collection: Collection, epsilon: float) -> float | None:
    if "gold" not in collection.metrics:
        return None
    gold = {
        (model.name, r["prompt_id"], r["sample_index"]): r["gold"]
        for model in [*collection.models.values(), *filter(None, [collection.control])]
        for r in model.flat
    }
    outcomes, gaps = [], []
    for v in (v for v in verdicts if v["readable"]):
        first, second = (
            (v[side], v["prompt_id"], v["sample_index"]) for side in ("model", "against")
        )
        if first in gold and second in gold:
            outcomes.append(v["outcome"])
            gaps.append(gold[first] - gold[second])
    signs = np.where(np.abs(gaps) <= epsilon, 0.0, np.sign(gaps))
    return cohens_kappa(np.array(outcomes), (signs + 1) / 2) if outcomes else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
