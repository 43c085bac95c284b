"""What judges said that compare a response with base's, and how far they can be believed."""

from collections.abc import Sequence

import numpy as np

from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples, Record, Results
from rlhf_recipes.evaluation.metrics.statistics import Array
from rlhf_recipes.evaluation.metrics.win_rate import summary


def judged_win_rate(verdicts: Sequence[Record], model: ModelSamples) -> Results | None:
    """The win rate over base by a judge's readable verdicts; None unless every prompt was judged.

    A verdict that cannot be read is missing, not a tie: prompts without a readable one are left
    out. With several verdicts per prompt, a prompt counts as often as it has readable ones, so that
    `value` is the mean over these. None, too, if fewer than two prompts have one.
    """
    outcomes: dict[int, list[float]] = {row[0]["prompt_id"]: [] for row in model.records}
    asked = dict.fromkeys(outcomes, 0)
    for verdict in verdicts:
        if verdict["model"] == model.name:
            asked[verdict["prompt_id"]] += 1
            outcomes[verdict["prompt_id"]] += [verdict["outcome"]] * bool(verdict["readable"])
    read = [said for said in outcomes.values() if said]
    if not all(asked.values()) or len(read) < 2:
        return None
    sizes = np.array([len(said) for said in read])
    means = np.array([np.mean(said) for said in read])
    weighted = 0.5 + sizes / sizes.mean() * (means - 0.5)
    single = max(asked.values()) == 1
    rate = summary(weighted, single=single, outcomes=np.concatenate([np.array(r) for r in read]))
    n, of = int(sizes.sum()), sum(asked.values())
    return rate | {"readable": {"n": n, "of": of, "fraction": n / of}}


def judge_quality(
    verdicts: Sequence[Record], collection: Collection, epsilon: float = 0.0
) -> Results:
    """How a judge behaves, over all its verdicts.

    readable: fraction with a readable reply to both orders. consistent: fraction of those on which
    the orders agree. first: share of readable replies for the answer shown first, a tie one half; a
    judge that always prefers it has first = 1 and consistent = 0, and a win rate of one half.
    kappa: Cohen's, of win, tie and loss with those of gold, if there is gold.
    """
    read = [v for v in verdicts if v["readable"]]
    preferred = [share for v in read for share in (v["first"], 1 - v["second"])]
    return {
        "n": len(verdicts),
        "readable": _mean([float(v["readable"]) for v in verdicts]),
        "consistent": _mean([float(v["first"] == v["second"]) for v in read]),
        "first": _mean(preferred),
        "kappa": _agreement(verdicts, collection, epsilon),
    }


def cohens_kappa(first: Array, second: Array) -> float | None:
    """(p_o - p_e) / (1 - p_e): agreement beyond what the two shares of each answer give by chance.

    None where one answer is all that both ever give.
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
        place = v["prompt_id"], v["sample_index"]
        if (v["model"], *place) in gold and (v["against"], *place) in gold:
            outcomes.append(v["outcome"])
            gaps.append(gold[(v["model"], *place)] - gold[(v["against"], *place)])
    signs = np.where(np.abs(gaps) <= epsilon, 0.0, np.sign(gaps))
    return cohens_kappa(np.array(outcomes), (signs + 1) / 2) if outcomes else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
