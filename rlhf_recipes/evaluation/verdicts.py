"""What judges said that compare a response with base's, and how far they can be believed."""

from collections.abc import Sequence

import numpy as np

from rlhf_recipes.evaluation.samples import Collection, ModelSamples, Record, Results
from rlhf_recipes.evaluation.statistics import Array
from rlhf_recipes.evaluation.win_rate import summary


def judged_win_rate(verdicts: Sequence[Record], model: ModelSamples) -> Results | None:
    """The win rate over base by a judge's verdicts, None unless every prompt has one."""
    outcomes: dict[int, list[float]] = {row[0]["prompt_id"]: [] for row in model.records}
    for verdict in verdicts:
        if verdict["model"] == model.name:
            outcomes[verdict["prompt_id"]].append(verdict["outcome"])
    if not all(outcomes.values()):
        return None
    single = all(len(said) == 1 for said in outcomes.values())
    return summary(np.array([np.mean(said) for said in outcomes.values()]), single=single)


def judge_quality(
    verdicts: Sequence[Record], collection: Collection, epsilon: float = 0.0
) -> Results:
    """How a judge behaves, over all its verdicts.

    readable: share with a readable reply to both orders. consistent: share of those on which the
    orders agree. first: share of readable replies for the answer shown first, a tie one half; a
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
    for v in verdicts:
        place = v["prompt_id"], v["sample_index"]
        if (v["model"], *place) in gold and (v["against"], *place) in gold:
            outcomes.append(v["outcome"])
            gaps.append(gold[(v["model"], *place)] - gold[(v["against"], *place)])
    signs = np.where(np.abs(gaps) <= epsilon, 0.0, np.sign(gaps))
    return cohens_kappa(np.array(outcomes), (signs + 1) / 2) if outcomes else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
