"""The reward-KL frontier: which models are on it, with what certainty, and runs at equal KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.metrics.statistics import (
    CONFIDENCE,
    Array,
    Interval,
    holm_corrected,
    percentiles,
    prompt_draws,
)
from rlhf_recipes.evaluation.metrics.typed_json import AtLeast0, Share


@dataclass(frozen=True)
class FrontierPoint:
    """Position of one model relative to the frontier of one metric.

    Attributes:
        on_front: Whether no other model dominates the point as measured.
        dominated_by: Models that dominate it in at least 95% of the bootstrap draws.
        probability: Fraction of the draws in which it is on the frontier.
        dominated: Whether it is off the frontier in 95% of the draws, of ten prompts or more.
    """

    on_front: bool
    dominated_by: Sequence[str]
    probability: Share
    dominated: bool


@dataclass(frozen=True)
class MatchedRuns:
    """Two families with checkpoints, compared at the largest KL that both reach.

    Attributes:
        families: The two that are compared.
        kl: That KL, in nats.
        difference: In gain, with its interval `ci`, bootstrap `p` and corrected `p_holm`.
    """

    families: Sequence[str]
    kl: AtLeast0
    difference: float
    ci: Interval
    p: Share
    p_holm: Share | None


@dataclass(frozen=True)
class Frontier:
    """Names of the models on the frontier of a metric, and runs compared at equal KL."""

    front: Sequence[str]
    matched: Sequence[MatchedRuns]


def dominance(kl: Array, reward: Array) -> NDArray[np.bool_]:
    """Mark at [..., a, b] whether point a dominates point b.

    It does with no more KL and no less reward, and strictly so in one of the two.

    Args:
        kl: Shape (..., points), as is reward.
    """
    less_kl = kl[..., :, None] - kl[..., None, :]
    more_reward = reward[..., :, None] - reward[..., None, :]
    strict = (less_kl < 0) | (more_reward > 0)
    return np.asarray((less_kl <= 0) & (more_reward >= 0) & strict)


def frontier_probability(kl: Array, reward: Array) -> tuple[Array, Array]:
    """Compute the fraction of joint bootstrap draws in which each model is on the frontier.

    Also returns the fraction of the draws in which model a dominates model b, at [a, b].

    Args:
        kl: Shape (models, prompts), as is reward; the reference is one of the models.
    """
    draws = prompt_draws(kl.shape[1])
    beats = dominance(draws @ kl.T, draws @ reward.T)
    return 1 - beats.any(axis=1).mean(axis=0), beats.mean(axis=0)


def gain_at(kl: float, path_kl: Array, path_gain: Array) -> float:
    """Interpolate the gain of a path of checkpoints at a KL, linearly in √KL from (0, 0)."""
    order = np.argsort(path_kl, kind="stable")
    roots = np.sqrt(np.clip(path_kl[order], 0, None))
    return float(np.interp(math.sqrt(kl), [0.0, *roots], [0.0, *path_gain[order]]))


def matched_difference(
    kl: tuple[Array, Array], gain: tuple[Array, Array]
) -> tuple[float, float, Interval, float]:
    """Compare two paths of checkpoints at the largest KL that both reach.

    Returns that KL, the difference in gain, its 95% interval and two-sided p from bootstrap draws
    of the prompts. Each draw recomputes the KL and both paths.

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


def frontier(collection: Collection, metric: str) -> dict[str, FrontierPoint]:
    """Locate every model relative to the frontier of one metric and KL."""
    models = collection.models
    kl = np.array([model.values("kl").mean(axis=1) for model in models.values()])
    reward = np.array([model.scores(metric).mean(axis=1) for model in models.values()])
    enough = kl.shape[1] >= FEWEST_PROMPTS
    beats = dominance(kl.mean(axis=1), reward.mean(axis=1))
    probabilities, dominating = frontier_probability(kl, reward)
    names = np.array(list(models))
    return {
        name: FrontierPoint(
            on_front=not beats[:, i].any(),
            dominated_by=names[dominating[:, i] >= CONFIDENCE].tolist() if enough else [],
            probability=float(probabilities[i]),
            dominated=bool(enough and 1 - probabilities[i] >= CONFIDENCE),
        )
        for i, name in enumerate(models)
    }


def matched_runs(collection: Collection, metric: str) -> list[MatchedRuns]:
    """Compare each two families of one run with checkpoints at the largest KL that both reach.

    Differences are in standard deviations of base, and their p is Holm-corrected over the pairs.
    """
    runs = {run[0].family: run for run in collection.runs.values() if len(run) > 1}
    families = [model.family for model in collection.finals]
    base = collection.base.scores(metric)
    scale = float(base.std(ddof=1)) or 1.0
    single = [family for family in runs if families.count(family) == 1]
    kl = {f: np.array([m.values("kl").mean(axis=1) for m in runs[f]]) for f in single}
    gain = {
        f: (np.array([m.scores(metric).mean(axis=1) for m in runs[f]]) - base.mean(axis=1)) / scale
        for f in single
    }
    tests = {}
    for first, second in combinations(single, 2):
        found = matched_difference((kl[first], kl[second]), (gain[first], gain[second]))
        tests[first, second] = MatchedRuns([first, second], *found, p_holm=None)
    return list(holm_corrected(tests).values())
