"""evaluation_results.json, computed from the saved samples."""

from dataclasses import asdict

import numpy as np
from scipy import stats

from rlhf_recipes.evaluation.metrics import comparisons, statistics
from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS, FEWEST_READABLE, verdict
from rlhf_recipes.evaluation.metrics.comparisons import win_rates
from rlhf_recipes.evaluation.metrics.diversity import diversity
from rlhf_recipes.evaluation.metrics.failures import detect_failures, failure_analysis, flags
from rlhf_recipes.evaluation.metrics.frontier import FrontierPoint, frontier, matched_runs
from rlhf_recipes.evaluation.metrics.kl import kl_summary
from rlhf_recipes.evaluation.metrics.over_optimization import over_optimization
from rlhf_recipes.evaluation.metrics.samples import (
    FIELD,
    Collection,
    ModelSamples,
    Results,
    reward_of,
)
from rlhf_recipes.evaluation.metrics.selection import samples_shown
from rlhf_recipes.evaluation.metrics.statistics import (
    holm_corrected,
    mean_interval,
    prompts_needed,
    student_half_width,
)
from rlhf_recipes.evaluation.metrics.verdicts import judge_quality
from rlhf_recipes.evaluation.report.caveats import caveats

SCHEMA_VERSION = 4
RATES = (0.55, 0.6, 0.7)


def evaluation_results(collection: Collection) -> tuple[Results, Results]:
    """Compute all results of an evaluation as one JSON object, and failure_analysis.json.

    A value that cannot be computed is null. Claims are made on the primary metric: gold where there
    is one, else an extra judge, else the proxy. Holm's correction is over the policies within each
    metric, and over all pairs in `pairwise`; earlier checkpoints of a run are reported, not tested.
    """
    failures = detect_failures(collection)
    analysis = failure_analysis(collection, failures)
    frontiers = {metric: frontier(collection, metric) for metric in collection.metrics}
    models = _models(collection, analysis, frontiers)
    results = {
        "schema_version": SCHEMA_VERSION,
        "run": collection.facts,
        "config": _config(collection),
        "models": models,
        "families": _families(collection, models),
        "judges": {
            judge: judge_quality(verdicts, collection, comparisons.TIE)
            for judge, verdicts in collection.verdicts.items()
        },
        "pairwise": comparisons.pairwise(collection),
        "controls": comparisons.controls(collection),
        "best_of_n": comparisons.best_of_n_curve(collection),
        "frontier": {
            metric: {
                "front": [name for name, point in points.items() if point.on_front],
                "matched": matched_runs(collection, metric),
            }
            for metric, points in frontiers.items()
        },
        "over_optimisation": over_optimization(collection, models),
        "flags": {
            record["id"]: detectors
            for name, model in collection.models.items()
            for i, row in enumerate(model.records)
            for k, record in enumerate(row)
            if (detectors := flags(failures, name, i, k))
        },
        "samples_shown": samples_shown(collection, failures),
        "reward_model": None,
        "training_curves": {},
    }
    return results | {"warnings": caveats(results, collection)}, analysis


def _models(
    collection: Collection, analysis: Results, frontiers: dict[str, dict[str, FrontierPoint]]
) -> Results:
    """Compute the entry of every model, with its p-values corrected over the final policies."""
    finals = [model.name for model in collection.finals]
    rates, rewards = _win_rates(collection, finals), _rewards(collection, finals)
    variety = diversity(collection)
    models = {}
    for name, model in collection.models.items():
        points = {metric: asdict(frontiers[metric][name]) for metric in collection.metrics}
        models[name] = {
            **_facts(model),
            "win_rate": rates[name],
            **rewards[name],
            "diversity": variety[name],
            "failures": {d: entry["per_model"][name] for d, entry in analysis.items()},
            "frontier": {"gold": None, **points},
        }
        if name in finals:
            models[name]["verdict"] = verdict(rates[name][collection.primary])
    return models


def _win_rates(collection: Collection, finals: list[str]) -> Results:
    """Compute the win rates of every model over base; null for base itself."""
    rates = {model.name: win_rates(model, collection) for model in collection.policies}
    corrected = {
        metric: holm_corrected({name: entry[metric] for name, entry in rates.items()}, finals)
        for metric in (*collection.metrics, *collection.verdicts)
    }
    by_model = {
        name: {**entry, **{metric: tests[name] for metric, tests in corrected.items()}}
        for name, entry in rates.items()
    }
    of_base = dict.fromkeys((*collection.metrics, *collection.verdicts, "gold", "lc"))
    return {collection.base.name: of_base, **by_model}


def _rewards(collection: Collection, finals: list[str]) -> Results:
    """Compute `reward`, `gold` and `scores` of every model."""
    by_model: Results = {
        name: {"reward": None, "gold": None, "scores": {}} for name in collection.models
    }
    for metric in collection.metrics:
        base = collection.base
        rewards = {
            name: comparisons.reward(
                model.scores(metric), base.scores(metric), is_base=model is base
            )
            for name, model in collection.models.items()
        }
        differences = {name: entry["difference"] for name, entry in rewards.items()}
        for name, difference in holm_corrected(differences, finals).items():
            entry = by_model[name] if metric in FIELD else by_model[name]["scores"]
            entry[FIELD.get(metric, metric)] = {**rewards[name], "difference": difference}
    return by_model


def _config(collection: Collection) -> Results:
    prompts, samples = collection.base.values("reward").shape
    return {
        "primary": collection.primary,
        "metrics": list(collection.metrics),
        "judges": list(collection.verdicts),
        "n_prompts": prompts,
        "samples_per_prompt": max(len(m.records[0]) for m in collection.policies),
        "base_samples_per_prompt": samples,
        "confidence": statistics.CONFIDENCE,
        "alpha": statistics.ALPHA,
        "power": statistics.POWER,
        "prompts_needed": {str(rate): prompts_needed(rate) for rate in RATES},
        "null_win_rate": 0.5,
        "tie_up_to": comparisons.TIE,
        "fewest_prompts": FEWEST_PROMPTS,
        "fewest_readable": FEWEST_READABLE,
        "resamples": statistics.RESAMPLES,
        "frontier_draws": statistics.DRAWS,
        "seed": statistics.SEED,
        "family": "policies within a metric; all pairs of policies within a metric",
    }


def _facts(model: ModelSamples) -> Results:
    """Summarize a model's samples without comparing them: counts, KL and length."""
    lengths = model.values("n_tokens")
    return {
        "family": model.family,
        "run": model.run,
        "checkpoint": model.checkpoint,
        "n_prompts": len(model.records),
        "n_samples": int(lengths.size),
        "kl": kl_summary(model),
        "length": {
            "mean": float(lengths.mean()),
            "sd": float(lengths.std(ddof=1)),
            "median": float(np.median(lengths)),
            "ci": mean_interval(lengths.mean(axis=1)),
        },
    }


def _families(collection: Collection, models: Results) -> Results:
    """Group checkpoints and seeds by family, with the spread between seeds."""
    members: dict[str, list[ModelSamples]] = {}
    for model in collection.policies:
        members.setdefault(model.family, []).append(model)
    finals = {
        family: [model.name for model in collection.finals if model.family == family]
        for family in members
    }
    return {
        family: {
            "models": [model.name for model in group],
            "checkpoints": [model.checkpoint for model in group],
            "finals": finals[family],
            "between_seeds": _between_seeds([models[n] for n in finals[family]], collection),
        }
        for family, group in members.items()
    }


def _between_seeds(entries: list[Results], collection: Collection) -> Results | None:
    """Compute mean and sd of the gains of several seeds, with Student's interval over seeds."""
    if len(entries) < 2:
        return None
    by_metric = {}
    for metric in collection.metrics:
        gains = [reward_of(entry, metric)["gain"]["value"] for entry in entries]
        half = student_half_width(len(gains)) * stats.sem(gains)
        mean, sd = float(np.mean(gains)), float(np.std(gains, ddof=1))
        by_metric[metric] = {"mean": mean, "sd": sd, "ci": [mean - half, mean + half]}
    return {"n": len(entries), **by_metric}
