"""The samples of a report: every prompt with the completions of all models."""

from typing import Any

from rlhf_recipes.evaluation.metrics.comparisons import TIE
from rlhf_recipes.evaluation.metrics.failures import DEFINITIONS
from rlhf_recipes.evaluation.metrics.samples import FIELD, Collection, ModelSamples, Record
from rlhf_recipes.evaluation.metrics.win_rate import win_scores
from rlhf_recipes.evaluation.report.figures import model_colors
from rlhf_recipes.evaluation.report.sentences import number, percent, signed
from rlhf_recipes.evaluation.results import EvaluationResults
from rlhf_recipes.prompts import spoken_turns

OUTCOMES = ("won", "tied", "lost")


def browser_data(results: EvaluationResults, collection: Collection) -> dict[str, Any]:
    """Return prompts, completions and outcomes as templates/report.js reads them.

    Numbers are texts, rounded as everywhere in the report. `gain` and `kl` are means over the
    samples of a prompt, to sort by; `flags` are indices into `detectors`.
    """
    reasons = {choice.prompt_id: choice.reason for choice in results.samples_shown.prompts}
    colors, shown = model_colors(results), {"base", *results.finals}
    answers = [_answers(model, results, collection) for model in collection.models.values()]
    return {
        "primary": collection.primary,
        "metrics": _metrics(results),
        "detectors": list(DEFINITIONS),
        "outcomes": list(OUTCOMES),
        "models": [
            {"name": name, "color": colors[name], "shown": name in shown}
            for name in collection.models
        ],
        "prompts": [
            {
                "id": row[0]["prompt_id"],
                "reason": reasons.get(row[0]["prompt_id"], ""),
                "turns": spoken_turns(row[0]["prompt"]),
                "answers": [model[i] for model in answers],
            }
            for i, row in enumerate(collection.base.records)
        ],
    }


def sample_facts(name: str, record: Record, results: EvaluationResults) -> list[str]:
    """Return the numbers and failures of a sample that is shown to a reader."""
    facts = [f"{metric} {score}" for metric, score in _scores(record, results).items()]
    facts += [f"KL {number(record['kl'])}"] * (name != "base")
    return [*facts, f"{record['n_tokens']} tokens", *results.flags.get(record["id"], [])]


def _answers(
    model: ModelSamples, results: EvaluationResults, collection: Collection
) -> list[dict[str, Any]]:
    """Return by prompt the outcome against base, as `win_rate` counts it, and every sample.

    `counted` says what the outcome is of: the difference in score where there is one pair of
    completions, else the fraction won of all pairs, which the score of one sample need not follow.
    """
    scores, base = model.scores(collection.primary), collection.base.scores(collection.primary)
    won = win_scores(scores, base, TIE)
    gains, kl = scores.mean(axis=1) - base.mean(axis=1), model.values("kl").mean(axis=1)
    pairs = scores.shape[1] * base.shape[1]
    is_base = model is collection.base
    return [
        {
            "outcome": "" if is_base else OUTCOMES[int(won[i] <= 0.5) + int(won[i] < 0.5)],
            "counted": f"{percent(won[i])} of {pairs} pairs" if pairs > 1 else signed(gains[i]),
            "gain": signed(gains[i]),
            "kl": number(kl[i]),
            "samples": [_sample(record, results) for record in row],
        }
        for i, row in enumerate(model.records)
    ]


def _sample(record: Record, results: EvaluationResults) -> dict[str, Any]:
    names = list(DEFINITIONS)
    return {
        "text": record["response"],
        "scores": list(_scores(record, results).values()),
        "kl": number(record["kl"]),
        "tokens": record["n_tokens"],
        "finish": record["finish"],
        "flags": [names.index(flag) for flag in results.flags.get(record["id"], [])],
    }


def _metrics(results: EvaluationResults) -> list[str]:
    return list(reversed(results.config.metrics))


def _scores(record: Record, results: EvaluationResults) -> dict[str, str]:
    scores = (record.get("scores") or {}) | {m: record.get(f) for m, f in FIELD.items()}
    return {metric: number(scores[metric]) for metric in _metrics(results)}
