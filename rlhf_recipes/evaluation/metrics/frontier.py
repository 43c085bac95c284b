"""The reward-KL frontier: who is on it, how surely, and paths at one KL."""

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS
from rlhf_recipes.evaluation.metrics.samples import Collection, Results
from rlhf_recipes.evaluation.metrics.statistics import (
    CONFIDENCE,
    Array,
    Interval,
    correct,
    percentiles,
    prompt_draws,
)


def dominance(kl: Array, reward: Array) -> NDArray[np.bool_]:
    """Whether point a dominates point b at [..., a, b]: no more KL, no less reward, one strictly.

    Args:
        kl: Shape (..., points), as is reward.
    """
    less_kl = kl[..., :, None] - kl[..., None, :]
    more_reward = reward[..., :, None] - reward[..., None, :]
    strict = (less_kl < 0) | (more_reward > 0)
    return np.asarray((less_kl <= 0) & (more_reward >= 0) & strict)


def frontier_probability(kl: Array, reward: Array) -> tuple[Array, Array]:
    """Fraction of joint bootstrap draws of the prompts in which each model is on the frontier.

    Also returns the fraction in which model a dominates model b, at [a, b].

    Args:
        kl: Shape (models, prompts), as is reward; the reference is one of the models.
    """
    draws = prompt_draws(kl.shape[1])
    beats = dominance(draws @ kl.T, draws @ reward.T)
    return 1 - beats.any(axis=1).mean(axis=0), beats.mean(axis=0)


def gain_at(kl: float, path_kl: Array, path_gain: Array) -> float:
    """Gain of a path of checkpoints at a KL, interpolated linearly in √KL from (0, 0)."""
    order = np.argsort(path_kl, kind="stable")
    roots = np.sqrt(np.clip(path_kl[order], 0, None))
    return float(np.interp(math.sqrt(kl), [0.0, *roots], [0.0, *path_gain[order]]))


def matched_difference(
    kl: tuple[Array, Array], gain: tuple[Array, Array]
) -> tuple[float, float, Interval, float]:
    """Gain of one path of checkpoints over another at the largest KL that both reach.

    Returns that KL, the difference, its 95% interval and two-sided p from bootstrap draws of the
    prompts, on each of which the KL and both paths are found anew.

    Args:
        kl: Of both paths, each of shape (checkpoints, prompts), as is gain.
    """
    n = kl[0].shape[1]
    draws = np.vstack([np.ones(n), prompt_draws(n)]) / n
    paths = [(draws @ k.T, draws @ g.T) for k, g in zip(kl, gain, strict=True)]
    shared = np.clip(np.minimum(paths[0][0].max(axis=1), paths[1][0].max(axis=1)), 0, None)
    first, second = (
        np.array([gain_at(*row) for row in zip(shared, *path, strict=True)]) for path in paths
    )
    gaps = (first - second)[1:]
    rarer = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    p = min(1.0, 2 * (rarer + 1) / (len(gaps) + 1))
    return float(shared[0]), float(first[0] - second[0]), percentiles(gaps), p


def add_frontiers(models: Results, collection: Collection) -> Results:
    """Each model's `frontier` by metric, added to its results; returns what concerns them all.

    A model is `dominated` if at least 95% of the bootstrap draws, of at least ten prompts, say so,
    and `dominated_by` each model of which as many draws say so. `matched` compares families of
    several checkpoints at the largest KL that both reach.
    """
    found: Results = {}
    names = list(models)
    for entry in models.values():
        entry["frontier"] = {"gold": None}
    kl = np.array([m.values("kl").mean(axis=1) for m in collection.models.values()])
    enough = kl.shape[1] >= FEWEST_PROMPTS
    for metric in collection.metrics:
        reward = np.array([m.scores(metric).mean(axis=1) for m in collection.models.values()])
        scale = float(collection.base.scores(metric).std(ddof=1)) or 1.0
        beats = dominance(kl.mean(axis=1), reward.mean(axis=1))
        on_front, dominating = frontier_probability(kl, reward)
        for i, probability in enumerate(map(float, on_front)):
            certain = np.flatnonzero(dominating[:, i] >= CONFIDENCE)
            models[names[i]]["frontier"][metric] = {
                "on_front": not beats[:, i].any(),
                "dominated_by": [names[j] for j in certain if enough],
                "probability": probability,
                "dominated": enough and 1 - probability >= CONFIDENCE,
            }
        found[metric] = {
            "front": [n for n in names if models[n]["frontier"][metric]["on_front"]],
            "matched": _matched(collection, metric, scale),
        }
    return found


def _matched(collection: Collection, metric: str, scale: float) -> list[Results]:
    paths = {path[0].family: path for path in collection.runs.values() if len(path) > 1}
    families = [model.family for model in collection.finals]
    base = collection.base.scores(metric).mean(axis=1)
    found: list[Results] = []
    for first, second in combinations([f for f in paths if families.count(f) == 1], 2):
        sides = paths[first], paths[second]
        kl, other_kl = (np.array([m.values("kl").mean(axis=1) for m in side]) for side in sides)
        gain, other_gain = (
            np.array([m.scores(metric).mean(axis=1) - base for m in side]) / scale for side in sides
        )
        at, gap, ci, p = matched_difference((kl, other_kl), (gain, other_gain))
        found.append({"families": [first, second], "kl": at, "difference": gap, "ci": ci, "p": p})
    correct(found)
    return found
