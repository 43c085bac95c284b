"""evaluation_results.json from the saved samples: every reported number is computed here."""

import numpy as np
from scipy import stats

from rlhf_recipes.evaluation.metrics import comparisons, statistics
from rlhf_recipes.evaluation.metrics.claims import FEWEST_PROMPTS, FEWEST_READABLE, verdict
from rlhf_recipes.evaluation.metrics.comparisons import pairwise, win_rates
from rlhf_recipes.evaluation.metrics.diversity import diversity
from rlhf_recipes.evaluation.metrics.failures import failed, failure_analysis, flags
from rlhf_recipes.evaluation.metrics.frontier import add_frontiers
from rlhf_recipes.evaluation.metrics.kl import kl_summary
from rlhf_recipes.evaluation.metrics.over_optimization import over_optimisation
from rlhf_recipes.evaluation.metrics.samples import (
    FIELD,
    Collection,
    ModelSamples,
    Results,
    reward_of,
)
from rlhf_recipes.evaluation.metrics.selection import samples_shown
from rlhf_recipes.evaluation.metrics.statistics import (
    correct,
    mean_interval,
    prompts_needed,
    student_half_width,
)
from rlhf_recipes.evaluation.metrics.verdicts import judge_quality
from rlhf_recipes.evaluation.report.caveats import caveats

SCHEMA_VERSION = 4
SHARES = (0.55, 0.6, 0.7)


def evaluation_results(collection: Collection) -> tuple[Results, Results]:
    """All results of an evaluation as one JSON object, and failure_analysis.json.

    What cannot be computed is null. Claims are made on the primary metric: gold where there is one,
    else an extra judge, else the proxy. Holm's correction is over the policies within each metric,
    and over all pairs in `pairwise`; earlier checkpoints of a run are reported and not tested.
    """
    fired = failed(collection)
    failures = failure_analysis(collection, fired)
    variety = diversity(collection)
    models = {m.name: _model(m, collection) for m in collection.models.values()}
    for name, entry in models.items():
        entry["diversity"] = variety[name]
        entry["failures"] = {d: f["per_model"][name] for d, f in failures.items()}
    finals = [models[m.name] for m in collection.finals]
    for metric in (*collection.metrics, *collection.verdicts):
        correct([entry["win_rate"][metric] for entry in finals if entry["win_rate"][metric]])
    for metric in collection.metrics:
        correct([reward_of(entry, metric)["difference"] for entry in finals])
    for entry in finals:
        entry["verdict"] = verdict(entry["win_rate"][collection.primary])
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
        "pairwise": pairwise(collection),
        "controls": comparisons.controls(collection),
        "best_of_n": comparisons.best_of_n_curve(collection),
        "frontier": add_frontiers(models, collection),
        "over_optimisation": over_optimisation(collection, models),
        "flags": {
            record["id"]: found
            for name, model in collection.models.items()
            for i, row in enumerate(model.records)
            for k, record in enumerate(row)
            if (found := flags(fired, name, i, k))
        },
        "samples_shown": samples_shown(collection, fired),
        "reward_model": None,
        "training_curves": {},
    }
    return results | {"warnings": caveats(results, collection)}, failures


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
        "prompts_needed": {str(share): prompts_needed(share) for share in SHARES},
        "null_win_rate": 0.5,
        "tie_up_to": comparisons.TIE,
        "fewest_prompts": FEWEST_PROMPTS,
        "fewest_readable": FEWEST_READABLE,
        "resamples": statistics.RESAMPLES,
        "frontier_draws": statistics.DRAWS,
        "seed": statistics.SEED,
        "family": "policies within a metric; all pairs of policies within a metric",
    }


def _model(model: ModelSamples, collection: Collection) -> Results:
    base = collection.base
    rates = dict.fromkeys((*collection.metrics, *collection.verdicts, "gold", "lc"))
    rewards: Results = {"reward": None, "gold": None, "scores": {}}
    for metric in collection.metrics:
        own, reference = model.scores(metric), base.scores(metric)
        into = rewards if metric in FIELD else rewards["scores"]
        into[FIELD.get(metric, metric)] = comparisons.reward(own, reference, is_base=model is base)
    lengths = model.values("n_tokens")
    return {
        "family": model.family,
        "run": model.run,
        "checkpoint": model.checkpoint,
        "n_prompts": len(model.records),
        "n_samples": int(lengths.size),
        "win_rate": rates if model is base else win_rates(model, collection),
        **rewards,
        "kl": kl_summary(model),
        "length": {
            "mean": float(lengths.mean()),
            "sd": float(lengths.std(ddof=1)),
            "median": float(np.median(lengths)),
            "ci": mean_interval(lengths.mean(axis=1)),
        },
    }


def _families(collection: Collection, models: Results) -> Results:
    """Checkpoints and seeds that belong together, and how far apart the seeds are."""
    found: Results = {}
    for model in collection.policies:
        found.setdefault(model.family, []).append(model)
    for family, members in found.items():
        finals = [model.name for model in collection.finals if model.family == family]
        found[family] = {
            "models": [model.name for model in members],
            "checkpoints": [model.checkpoint for model in members],
            "finals": finals,
            "between_seeds": _between_seeds([models[name] for name in finals], collection),
        }
    return found


def _between_seeds(entries: list[Results], collection: Collection) -> Results | None:
    """Mean and sd of the gains of several seeds, with Student's interval over seeds."""
    if len(entries) < 2:
        return None
    found: Results = {"n": len(entries)}
    for metric in collection.metrics:
        gains = [reward_of(entry, metric)["gain"]["value"] for entry in entries]
        half = student_half_width(len(gains)) * stats.sem(gains)
        mean, sd = float(np.mean(gains)), float(np.std(gains, ddof=1))
        found[metric] = {"mean": mean, "sd": sd, "ci": [mean - half, mean + half]}
    return found
