"""evaluation_results.json, computed from the saved samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from scipy import stats

from rlhf_recipes.evaluation.metrics import comparisons, statistics
from rlhf_recipes.evaluation.metrics.claims import (
    FEWEST_PROMPTS,
    FEWEST_READABLE,
    Claim,
    win_claim,
)
from rlhf_recipes.evaluation.metrics.comparisons import (
    BestOfN,
    Controls,
    OverBase,
    Pair,
    Reward,
)
from rlhf_recipes.evaluation.metrics.diversity import Diversity, diversity
from rlhf_recipes.evaluation.metrics.failures import (
    Failure,
    FailureRate,
    detect_failures,
    failure_analysis,
    flags,
)
from rlhf_recipes.evaluation.metrics.frontier import (
    Frontier,
    FrontierPoint,
    frontier,
    matched_runs,
)
from rlhf_recipes.evaluation.metrics.kl import KL, kl_summary
from rlhf_recipes.evaluation.metrics.over_optimization import OverOptimization, over_optimization
from rlhf_recipes.evaluation.metrics.reward_model import RewardModelQuality
from rlhf_recipes.evaluation.metrics.samples import Collection, ModelSamples
from rlhf_recipes.evaluation.metrics.selection import SamplesShown, samples_shown
from rlhf_recipes.evaluation.metrics.statistics import (
    Interval,
    mean_interval,
    prompts_needed,
    student_half_width,
)
from rlhf_recipes.evaluation.metrics.training_logs import (
    TrainingCost,
    TrainingCurves,
    TrainingLog,
    summarize,
    training_costs,
)
from rlhf_recipes.evaluation.metrics.typed_json import FLAT, Count, Share
from rlhf_recipes.evaluation.metrics.verdicts import JudgeQuality, judge_quality

RATES = (0.55, 0.6, 0.7)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What was compared, how often, and the constants of intervals, tests and claims."""

    primary: str
    metrics: Sequence[str]
    judges: Sequence[str]
    n_prompts: Annotated[int, ("minimum", 2)]
    samples_per_prompt: Annotated[int, ("minimum", 1)]
    base_samples_per_prompt: Annotated[int, ("minimum", 1)]
    confidence: Share = statistics.CONFIDENCE
    alpha: Share = statistics.ALPHA
    power: Share = statistics.POWER
    prompts_needed: Mapping[str, Count]
    null_win_rate: Share = 0.5
    tie_up_to: float = comparisons.TIE
    fewest_prompts: Count = FEWEST_PROMPTS
    fewest_readable: Share = FEWEST_READABLE
    resamples: Count = statistics.RESAMPLES
    frontier_draws: Count = statistics.DRAWS
    seed: Count = statistics.SEED
    family: str = "policies within a metric; all pairs of policies within a metric"


@dataclass(frozen=True)
class Length:
    """Length of completions in tokens, with the interval of the mean."""

    mean: float
    sd: float
    median: float
    ci: Interval


@dataclass(frozen=True)
class ModelResults:
    """Results of one model.

    Attributes:
        win_rate: Over base; None by every metric for base itself.
        reward: Scores by the proxy; `gold` and `scores` are those by gold and by extra judges.
        failures: By detector.
        frontier: By metric; gold is None where there is none.
        verdict: The claim on the win rate by the primary metric, of the final policies.
    """

    family: str
    run: str
    checkpoint: int | None
    n_prompts: Count
    n_samples: Count
    kl: KL
    length: Length
    win_rate: OverBase
    reward: Reward
    gold: Reward | None
    scores: Mapping[str, Reward]
    diversity: Diversity
    failures: Mapping[str, FailureRate]
    frontier: Mapping[str, FrontierPoint | None]
    verdict: Claim | None = None

    @property
    def rewards(self) -> dict[str, Reward]:
        """`reward`, `gold` and `scores` by metric."""
        gold = {"gold": self.gold} if self.gold else {}
        return {"proxy": self.reward, **self.scores, **gold}


@dataclass(frozen=True)
class SeedGains:
    """Mean and sd of the gains of several seeds, with Student's interval over seeds."""

    mean: float
    sd: float
    ci: Interval


@dataclass(frozen=True)
class BetweenSeeds:
    """Gains of the n final policies of a family, by metric."""

    n: Count
    by_metric: Mapping[str, SeedGains] = field(metadata=FLAT)


@dataclass(frozen=True)
class Family:
    """Checkpoints and seeds of one method.

    Attributes:
        finals: The models that claims are made on.
        between_seeds: None for one final policy.
    """

    models: Sequence[str]
    checkpoints: Sequence[int | None]
    finals: Sequence[str]
    between_seeds: BetweenSeeds | None


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """All results of an evaluation; evaluation_results.json is this as JSON.

    Attributes:
        run: Content of `collection.json`.
        models: Base first.
        judges: Those that compare completions.
        pairwise: By `A vs B`.
        frontier: By metric.
        flags: Detectors that fire, by sample id.
        report: Where report.html is.
        warnings: What limits the results, in sentences.
    """

    schema_version: Literal[6] = 6
    run: Mapping[str, Any]
    config: Config
    models: Mapping[str, ModelResults]
    families: Mapping[str, Family]
    judges: Mapping[str, JudgeQuality]
    pairwise: Mapping[str, Pair]
    controls: Controls
    best_of_n: Sequence[BestOfN]
    frontier: Mapping[str, Frontier]
    over_optimization: OverOptimization | None
    flags: Mapping[str, Sequence[str]]
    samples_shown: SamplesShown
    reward_model: RewardModelQuality | None
    training_curves: Mapping[str, TrainingCurves]
    warnings: Sequence[str] = ()
    training: Mapping[str, TrainingCost]
    report: str

    @property
    def finals(self) -> list[str]:
        """The policies that claims are made on: the last checkpoint of each run."""
        return [name for family in self.families.values() for name in family.finals]


def evaluation_results(
    collection: Collection,
    logs: Mapping[str, TrainingLog] | None = None,
    reward_model: RewardModelQuality | None = None,
    report: str = "",
) -> tuple[EvaluationResults, dict[str, Failure]]:
    """Compute all results of an evaluation but its warnings, and the failures by detector.

    A value that cannot be computed is None. Claims are made on the primary metric: gold where there
    is one, else an extra judge, else the proxy. Holm's correction is over the policies within each
    metric, and over all pairs in `pairwise`; earlier checkpoints of a run are reported, not tested.

    Args:
        logs: Logs of the training runs, by stage.
        reward_model: Quality of the reward model, if its training left scores.
        report: Where report.html will be.
    """
    masks = detect_failures(collection)
    failures = failure_analysis(collection, masks)
    frontiers = {metric: frontier(collection, metric) for metric in collection.metrics}
    rewards = comparisons.rewards(collection)
    models = _models(collection, rewards, failures, frontiers)
    results = EvaluationResults(
        run=collection.facts,
        config=_config(collection),
        models=models,
        families=_families(collection, rewards),
        judges={
            judge: judge_quality(verdicts, collection, comparisons.TIE)
            for judge, verdicts in collection.verdicts.items()
        },
        pairwise=comparisons.pairwise(collection),
        controls=comparisons.controls(collection),
        best_of_n=comparisons.best_of_n_curve(collection),
        frontier={
            metric: Frontier(
                [name for name, point in points.items() if point.on_front],
                matched_runs(collection, metric),
            )
            for metric, points in frontiers.items()
        },
        over_optimization=over_optimization(collection, rewards),
        flags={
            record["id"]: detectors
            for name, model in collection.models.items()
            for i, row in enumerate(model.records)
            for k, record in enumerate(row)
            if (detectors := flags(masks, name, i, k))
        },
        samples_shown=samples_shown(collection, masks),
        reward_model=reward_model,
        training_curves=summarize(logs or {}),
        training=training_costs(logs or {}, collection.facts["models"]),
        report=report,
    )
    return results, failures


def _models(
    collection: Collection,
    rewards: Mapping[str, dict[str, Reward]],
    failures: Mapping[str, Failure],
    frontiers: Mapping[str, Mapping[str, FrontierPoint]],
) -> dict[str, ModelResults]:
    """Compute the entry of every model, with its p-values corrected over the final policies."""
    finals = [model.name for model in collection.finals]
    rates, variety = comparisons.win_rates(collection), diversity(collection)
    models = {}
    for name, model in collection.models.items():
        lengths = model.values("n_tokens")
        scores = dict(rewards[name])
        models[name] = ModelResults(
            family=model.family,
            run=model.run,
            checkpoint=model.checkpoint,
            n_prompts=len(model.records),
            n_samples=int(lengths.size),
            kl=kl_summary(model),
            length=Length(
                mean=float(lengths.mean()),
                sd=float(lengths.std(ddof=1)),
                median=float(np.median(lengths)),
                ci=mean_interval(lengths.mean(axis=1)),
            ),
            win_rate=rates[name],
            reward=scores.pop("proxy"),
            gold=scores.pop("gold", None),
            scores=scores,
            diversity=variety[name],
            failures={rule: failure.per_model[name] for rule, failure in failures.items()},
            frontier={"gold": None} | {metric: at[name] for metric, at in frontiers.items()},
            verdict=win_claim(rates[name][collection.primary]) if name in finals else None,
        )
    return models


def _config(collection: Collection) -> Config:
    prompts, samples = collection.base.values("reward").shape
    return Config(
        primary=collection.primary,
        metrics=list(collection.metrics),
        judges=list(collection.verdicts),
        n_prompts=prompts,
        samples_per_prompt=max(len(m.records[0]) for m in collection.policies),
        base_samples_per_prompt=samples,
        prompts_needed={str(rate): prompts_needed(rate) for rate in RATES},
    )


def _families(
    collection: Collection, rewards: Mapping[str, Mapping[str, Reward]]
) -> dict[str, Family]:
    """Group checkpoints and seeds by family, with the spread between seeds."""
    members: dict[str, list[ModelSamples]] = {}
    for model in collection.policies:
        members.setdefault(model.family, []).append(model)
    finals = {
        family: [model.name for model in collection.finals if model.family == family]
        for family in members
    }
    return {
        family: Family(
            models=[model.name for model in group],
            checkpoints=[model.checkpoint for model in group],
            finals=finals[family],
            between_seeds=_between_seeds([rewards[n] for n in finals[family]], collection),
        )
        for family, group in members.items()
    }


def _between_seeds(
    seeds: Sequence[Mapping[str, Reward]], collection: Collection
) -> BetweenSeeds | None:
    if len(seeds) < 2:
        return None
    by_metric = {}
    for metric in collection.metrics:
        gains = [rewards[metric].gain.value for rewards in seeds]
        half = student_half_width(len(gains)) * stats.sem(gains)
        mean, sd = float(np.mean(gains)), float(np.std(gains, ddof=1))
        by_metric[metric] = SeedGains(mean, sd, Interval(float(mean - half), float(mean + half)))
    return BetweenSeeds(len(seeds), by_metric)
