"""evaluation_results.json from the saved samples: every reported number is computed here."""

from itertools import combinations
from typing import Any

import numpy as np

from rlhf_recipes.evaluation import statistics
from rlhf_recipes.evaluation.failures import failure_analysis, flags
from rlhf_recipes.evaluation.frontier import (
    DRAWS,
    best_of_n,
    best_of_n_kl,
    dominance,
    frontier_probability,
)
from rlhf_recipes.evaluation.kl import kl_summary
from rlhf_recipes.evaluation.over_optimisation import over_optimisation
from rlhf_recipes.evaluation.samples import CONTROL, FIELD, Collection, ModelSamples
from rlhf_recipes.evaluation.statistics import (
    Array,
    holm,
    mean_interval,
    sign_flip_test,
)
from rlhf_recipes.evaluation.win_rate import win_rate

Results = dict[str, Any]

SCHEMA_VERSION = 1
BETTER, WORSE, UNDECIDED = "better", "worse", "no detectable difference"
# One text scored in two batches differs in the last bits, and that is no win.
TIE = 1e-5
BEST_OF_N_FROM = 4
SHOWN_AT_RANDOM = 4
MANY_CUT_OFF = 0.3
FEW_PROMPTS = 50


def evaluation_results(collection: Collection) -> Results:
    """All results of an evaluation as one JSON object; what cannot be computed is null.

    Claims are made on the primary metric: gold where there is one, else the proxy. Holm's
    correction is over the policies, within each metric, and over all pairs in `pairwise`.
    """
    failures = failure_analysis(collection)
    models = {m.name: _model(m, collection) for m in collection.models.values()}
    for name, entry in models.items():
        entry["failures"] = {d: f["per_model"][name] for d, f in failures.items()}
    pairwise = _pairwise(collection)
    policies = [models[m.name] for m in collection.policies]
    for metric in collection.metrics:
        _correct([entry["win_rate"][metric] for entry in policies])
        _correct([entry[FIELD[metric]]["difference"] for entry in policies])
        _correct([pair[metric] for pair in pairwise.values()])
        _add_frontier(models, collection, metric)
    for entry in policies:
        entry["verdict"] = verdict(entry["win_rate"][collection.primary])
    results = {
        "schema_version": SCHEMA_VERSION,
        "run": collection.facts,
        "config": _config(collection),
        "models": models,
        "pairwise": pairwise,
        "controls": _controls(collection),
        "best_of_n": _best_of_n(collection),
        "over_optimisation": over_optimisation(collection, models),
        "samples_shown": _samples_shown(collection),
    }
    return results | {"warnings": _warnings(results, collection)}


def verdict(rate: Results) -> str:
    """What may be said of a win rate: a direction only if Holm's p and the interval both agree."""
    low, high = rate["ci"]
    if rate["p_holm"] >= statistics.ALPHA or low <= 0.5 <= high:
        return UNDECIDED
    return BETTER if rate["value"] > 0.5 else WORSE


def _config(collection: Collection) -> Results:
    prompts, samples = collection.base.values("reward").shape
    return {
        "primary": collection.primary,
        "n_prompts": prompts,
        "samples_per_prompt": samples,
        "confidence": statistics.CONFIDENCE,
        "alpha": statistics.ALPHA,
        "power": statistics.POWER,
        "null_win_rate": 0.5,
        "tie_up_to": TIE,
        "resamples": statistics.RESAMPLES,
        "frontier_draws": DRAWS,
        "seed": statistics.SEED,
        "family": "policies within a metric; all pairs of policies within a metric",
    }


def _model(model: ModelSamples, collection: Collection) -> Results:
    base = collection.base
    rates: Results = {"proxy": None, "gold": None}
    rewards: Results = {"reward": None, "gold": None}
    for metric in collection.metrics:
        field = FIELD[metric]
        own, reference = model.values(field), base.values(field)
        rewards[field] = _reward(own, reference, is_base=model is base)
        if model is not base:
            rates[metric] = win_rate(own, reference, TIE)
    lengths = model.values("n_tokens")
    return {
        "n_prompts": len(model.records),
        "n_samples": int(lengths.size),
        "win_rate": rates,
        **rewards,
        "kl": kl_summary(model),
        "length": {
            "mean": float(lengths.mean()),
            "sd": float(lengths.std(ddof=1)),
            "median": float(np.median(lengths)),
            "ci": list(mean_interval(lengths.mean(axis=1))),
        },
        "frontier": {"proxy": None, "gold": None},
    }


def _reward(own: Array, reference: Array, *, is_base: bool) -> Results:
    """Mean, sd over samples, interval over prompts; paired difference; gain in the base's sd."""
    scale = float(reference.std(ddof=1))
    unit = "sd of base" if scale > 0 else "reward (base does not vary)"
    scale = scale or 1.0
    gaps = own.mean(axis=1) - reference.mean(axis=1)
    interval = mean_interval(gaps)
    gain = {"value": float(gaps.mean()) / scale, "ci": [x / scale for x in interval], "unit": unit}
    difference = {"mean": float(gaps.mean()), "ci": list(interval), "p": sign_flip_test(gaps)}
    return {
        "mean": float(own.mean()),
        "sd": float(own.std(ddof=1)),
        "ci": list(mean_interval(own.mean(axis=1))),
        "difference": None if is_base else difference,
        "gain": gain,
    }


def _correct(tests: list[Results]) -> None:
    for test, p_holm in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p_holm


def _pairwise(collection: Collection) -> Results:
    """Policy against policy on the same prompts, never by comparing two intervals against base."""
    pairs: Results = {}
    for first, second in combinations(collection.policies, 2):
        rates: Results = {"proxy": None, "gold": None}
        for metric in collection.metrics:
            field = FIELD[metric]
            rates[metric] = win_rate(first.values(field), second.values(field), TIE)
        pairs[f"{first.name} vs {second.name}"] = rates
    return pairs


def _add_frontier(models: Results, collection: Collection, metric: str) -> None:
    names = list(collection.models)
    everyone = collection.models.values()
    kl = np.array([m.values("kl").mean(axis=1) for m in everyone])
    reward = np.array([m.values(FIELD[metric]).mean(axis=1) for m in everyone])
    beats = dominance(kl.mean(axis=1), reward.mean(axis=1))
    for i, probability in enumerate(frontier_probability(kl, reward)):
        models[names[i]]["frontier"][metric] = {
            "on_front": not beats[:, i].any(),
            "dominated_by": [names[j] for j in np.flatnonzero(beats[:, i])],
            "probability": probability,
        }


def _controls(collection: Collection) -> Results:
    """Base sampled again: no detectable difference to itself, and a KL of exactly 0."""
    if collection.control is None:
        return {}
    rates: Results = {"proxy": None, "gold": None}
    for metric in collection.metrics:
        field = FIELD[metric]
        again, once = collection.control.values(field), collection.base.values(field)
        rates[metric] = win_rate(again, once, TIE)
    kl = kl_summary(collection.control)
    _correct([rates[metric] for metric in collection.metrics])
    same = all(verdict(rates[metric]) == UNDECIDED for metric in collection.metrics)
    passed = same and not collection.control.values("kl").any()
    return {CONTROL: {"win_rate": rates, "kl": kl, "passed": passed}}


def _best_of_n(collection: Collection) -> list[Results]:
    """The base's best of n by the proxy; nothing is claimed from fewer than four samples."""
    proxy = collection.base.values("reward")
    rows: list[Results] = []
    n = 1
    while proxy.shape[1] >= BEST_OF_N_FROM and n <= proxy.shape[1]:
        bound = best_of_n_kl(n)
        row: Results = {"n": n, "kl_bound": bound, "sqrt_kl_bound": float(np.sqrt(bound))}
        for metric in collection.metrics:
            values = collection.base.values(FIELD[metric])
            best = best_of_n(proxy, values, n)
            gain = float(best.mean() - values.mean()) / (float(values.std(ddof=1)) or 1.0)
            row[metric] = {
                "mean": float(best.mean()),
                "ci": list(mean_interval(best)),
                "gain": gain,
            }
        rows.append(row)
        n *= 2
    return rows


def _samples_shown(collection: Collection) -> Results:
    """Prompts to show: four at random, then the largest gain and the largest loss on average."""
    field = FIELD[collection.primary]
    base = collection.base.values(field).mean(axis=1)
    gains = np.mean([m.values(field).mean(axis=1) - base for m in collection.policies], axis=0)
    rng = np.random.default_rng(statistics.SEED)
    rows = sorted(rng.choice(len(base), min(SHOWN_AT_RANDOM, len(base)), replace=False))
    chosen = {int(row): "drawn at random" for row in rows}
    for row, reason in ((gains.argmax(), "largest gain"), (gains.argmin(), "largest loss")):
        chosen.setdefault(
            int(row), f"{reason} in {collection.primary} reward, mean of the policies"
        )
    return {
        "rule": (
            f"{SHOWN_AT_RANDOM} prompts drawn with seed {statistics.SEED}, then the largest gain "
            f"and the largest loss in {collection.primary} reward over base, averaged over the "
            "policies; the first sample of each model"
        ),
        "prompts": [_shown(collection, row, reason) for row, reason in chosen.items()],
    }


def _shown(collection: Collection, row: int, reason: str) -> Results:
    records = {model.name: model.records[row][0] for model in collection.models.values()}
    numbers = ("id", "reward", "gold", "kl", "n_tokens")
    samples = {
        name: {key: record.get(key) for key in numbers} | {"flags": flags(record)}
        for name, record in records.items()
    }
    prompt_id = collection.base.records[row][0]["prompt_id"]
    return {"row": row, "prompt_id": prompt_id, "reason": reason, "samples": samples}


def _warnings(results: Results, collection: Collection) -> list[str]:
    found = []
    config = results["config"]
    if config["n_prompts"] < FEW_PROMPTS:
        found.append(
            f"{config['n_prompts']} prompts are few: only large differences can be seen "
            "(`detectable` says how large)."
        )
    if "gold" not in collection.metrics:
        found.append(
            "No gold judge: gold is null, and claims rest on the reward that was trained on."
        )
    for name, model in results["models"].items():
        if not model["kl"]["k1_agrees"]:
            found.append(
                f"{name}: the exact KL and its sampled estimate differ by more than three joint "
                "standard errors. The samples may not come from the policy whose logits were used."
            )
    cut_off = {n: m["failures"]["truncated"]["rate"] for n, m in results["models"].items()}
    if max(cut_off.values()) > MANY_CUT_OFF:
        shares = ", ".join(f"{name} {100 * rate:.0f}%" for name, rate in cut_off.items())
        found.append(
            f"Many responses were cut off at the length limit ({shares}): rewards and KL are those "
            "of the cut-off text."
        )
    if not results["controls"]:
        found.append(
            "No control: base was not sampled twice, so the pipeline is not checked by A/A."
        )
    found += [
        f"{name}: the A/A control failed. Base against itself must win half and have no KL; by "
        "chance alone one control in twenty fails."
        for name, control in results["controls"].items()
        if not control["passed"]
    ]
    return found
