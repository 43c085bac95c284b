"""The reward-KL frontier of an evaluation: who is on it, how surely, and against what ceiling."""

from itertools import combinations
from typing import Any

import numpy as np

from rlhf_recipes.evaluation.pareto import (
    dominance,
    efficiency,
    frontier_probability,
    matched_difference,
    prompt_draws,
    within_prompt_sd,
)
from rlhf_recipes.evaluation.samples import Collection
from rlhf_recipes.evaluation.statistics import CONFIDENCE, Array, holm

Results = dict[str, Any]

NOT_FROM_ONE = "base has one sample a prompt and no control"


def add_frontiers(models: Results, collection: Collection) -> Results:
    """Each model's `frontier` by metric, added to its results; returns what concerns them all.

    A model is `dominated` if at least 95% of the bootstrap draws of the prompts say so. The ceiling
    is the gain in standard deviations of base per √KL that no policy can exceed if rewards are
    sub-Gaussian: √2 sd_within / sd. `matched` compares families of several checkpoints at the
    largest KL that both reach.
    """
    found: Results = {}
    for entry in models.values():
        entry["frontier"] = {"gold": None}
    kl = np.array([m.values("kl").mean(axis=1) for m in collection.models.values()])
    for metric in collection.metrics:
        reward = np.array([m.scores(metric).mean(axis=1) for m in collection.models.values()])
        deviation = _deviation(collection, metric)
        beats = dominance(kl.mean(axis=1), reward.mean(axis=1))
        names = list(models)
        for i, probability in enumerate(frontier_probability(kl, reward)):
            models[names[i]]["frontier"][metric] = {
                "on_front": not beats[:, i].any(),
                "dominated_by": [names[j] for j in np.flatnonzero(beats[:, i])],
                "probability": probability,
                "dominated": 1 - probability >= CONFIDENCE,
                "efficiency": _efficiency(reward[i] - reward[0], kl[i], deviation),
            }
        scale = float(collection.base.scores(metric).std(ddof=1)) or 1.0
        found[metric] = {
            "front": [n for n in names if models[n]["frontier"][metric]["on_front"]],
            "sd_within": deviation,
            "ceiling": None if deviation is None else float(np.sqrt(2) * deviation / scale),
            "reason": NOT_FROM_ONE if deviation is None else None,
            "matched": _matched(collection, metric, scale),
        }
    return found


def _deviation(collection: Collection, metric: str) -> float | None:
    """Of base's rewards within a prompt; the control's samples count, being base's too."""
    rewards = collection.base.scores(metric)
    if collection.control is not None:
        rewards = np.concatenate([rewards, collection.control.scores(metric)], axis=1)
    return within_prompt_sd(rewards)


def _efficiency(gain: Array, kl: Array, deviation: float | None) -> Results | None:
    if not deviation or kl.mean() <= 0:
        return None
    draws = prompt_draws(len(kl))
    ratios = draws @ gain / (deviation * np.sqrt(2 * np.maximum(draws @ kl, 1e-12)))
    ends = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = efficiency(float(gain.mean()), deviation, float(kl.mean()))
    return {"value": value, "ci": ends.tolist()}


def _matched(collection: Collection, metric: str, scale: float) -> list[Results]:
    paths = {path[0].family: path for path in collection.runs.values() if len(path) > 1}
    families = [model.family for model in collection.finals]
    base = collection.base.scores(metric).mean(axis=1)
    found: list[Results] = []
    for first, second in combinations([f for f in paths if families.count(f) == 1], 2):
        sides = paths[first], paths[second]
        kl = [np.array([m.values("kl").mean(axis=1) for m in side]) for side in sides]
        gain = [
            np.array([m.scores(metric).mean(axis=1) - base for m in side]) / scale for side in sides
        ]
        at, gap, ci, p = matched_difference((kl[0], kl[1]), (gain[0], gain[1]))
        found.append({"families": [first, second], "kl": at, "difference": gap, "ci": ci, "p": p})
    for pair, p_holm in zip(found, holm([pair["p"] for pair in found]), strict=True):
        pair["p_holm"] = p_holm
    return found
