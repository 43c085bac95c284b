"""The samples of a report: every prompt with the answers of all models, to browse or to read."""

from rlhf_recipes.evaluation.metrics.comparisons import TIE
from rlhf_recipes.evaluation.metrics.failures import DEFINITIONS
from rlhf_recipes.evaluation.metrics.samples import FIELD, Collection, ModelSamples, Record, Results
from rlhf_recipes.evaluation.metrics.win_rate import win_scores
from rlhf_recipes.evaluation.report.blocks import Excerpt, Excerpts, Samples, Section
from rlhf_recipes.evaluation.report.evidence import finals_of, metrics_of
from rlhf_recipes.evaluation.report.figures import colours
from rlhf_recipes.evaluation.report.sentences import number, percent, signed
from rlhf_recipes.prompts import spoken_turns

OUTCOMES = ("won", "tied", "lost")


def samples_section(results: Results, collection: Collection) -> Section:
    """Responses of all models to the same prompts; without a script, those of the stated rule."""
    shown = results["samples_shown"]
    excerpts = []
    for choice in shown["prompts"]:
        row = choice["row"]
        texts = []
        for name, sample in choice["samples"].items():
            facts = [f"{m} {score}" for m, score in _scores(sample, results).items()]
            facts += [f"KL {number(sample['kl'])}"] if name != "base" else []
            facts += [f"{sample['n_tokens']} tokens", *sample["flags"]]
            response = collection.models[name].records[row][0]["response"]
            texts.append(Excerpt(name, facts, response))
        title = f"Prompt {choice['prompt_id']} ({choice['reason']})"
        excerpts.append(Excerpts(title, collection.base.records[row][0]["prompt"], texts))
    rule = f"Selection: {shown['rule']}."
    return Section("Samples", [Samples(rule, excerpts, browser_data(results, collection))])


def browser_data(results: Results, collection: Collection) -> Results:
    """Prompts, answers and outcomes as templates/report.js reads them.

    Numbers are texts, rounded as everywhere in the report. `gain` and `kl` of an answer are means
    over its samples; `flags` are places in `detectors`.
    """
    reasons = {
        choice["prompt_id"]: choice["reason"] for choice in results["samples_shown"]["prompts"]
    }
    tints, shown = colours(results), {"base", *finals_of(results)}
    answers = [_answers(model, results, collection) for model in collection.models.values()]
    return {
        "primary": collection.primary,
        "metrics": metrics_of(results),
        "detectors": list(DEFINITIONS),
        "outcomes": list(OUTCOMES),
        "models": [
            {"name": name, "colour": tints[name], "shown": name in shown}
            for name in collection.models
        ],
        "prompts": [
            {
                "id": row[0]["prompt_id"],
                "reason": reasons.get(row[0]["prompt_id"], ""),
                "turns": spoken_turns(row[0]["prompt"]),
                "answers": [each[i] for each in answers],
            }
            for i, row in enumerate(collection.base.records)
        ],
    }


def _answers(model: ModelSamples, results: Results, collection: Collection) -> list[Results]:
    """By prompt: the outcome against base, as `win_rate` counts it, and every sample."""
    own, base = model.scores(collection.primary), collection.base.scores(collection.primary)
    won = win_scores(own, base, TIE)
    gains, kl = own.mean(axis=1) - base.mean(axis=1), model.values("kl").mean(axis=1)
    several = own.shape[1] * base.shape[1] > 1
    is_base = model is collection.base
    return [
        {
            "outcome": "" if is_base else OUTCOMES[int(won[i] <= 0.5) + int(won[i] < 0.5)],
            "share": f"({percent(won[i])} of pairs)" if several else "",
            "gain": signed(gains[i]),
            "kl": number(kl[i]),
            "samples": [_sample(record, results) for record in row],
        }
        for i, row in enumerate(model.records)
    ]


def _sample(record: Record, results: Results) -> Results:
    names = list(DEFINITIONS)
    return {
        "text": record["response"],
        "scores": list(_scores(record, results).values()),
        "kl": number(record["kl"]),
        "tokens": record["n_tokens"],
        "finish": record["finish"],
        "flags": [names.index(flag) for flag in results["flags"].get(record["id"], [])],
    }


def _scores(record: Record, results: Results) -> dict[str, str]:
    scores = (record.get("scores") or {}) | {m: record.get(f) for m, f in FIELD.items()}
    return {metric: number(scores[metric]) for metric in metrics_of(results)}
