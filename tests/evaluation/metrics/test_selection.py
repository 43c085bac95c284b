import json

import numpy as np

from rlhf_recipes.evaluation.metrics.samples import read_samples


def test_prompts_are_chosen_by_the_stated_rule(evaluated):
    results = json.loads((evaluated / "results" / "evaluation_results.json").read_text())
    collection = read_samples(evaluated / "samples")
    base = collection.base.scores("gold")[:, 0]
    gains = np.mean([m.scores("gold")[:, 0] - base for m in collection.policies], axis=0)
    kl = np.mean([m.values("kl")[:, 0] for m in collection.policies], axis=0)
    shown = {
        choice["reason"].split(",")[0]: choice for choice in results["samples_shown"]["prompts"]
    }
    drawn = [c for c in results["samples_shown"]["prompts"] if c["reason"] == "drawn at random"]
    assert len(drawn) == 4
    for reason, row in (
        ("largest gain in gold reward", gains.argmax()),
        ("largest loss in gold reward", gains.argmin()),
        ("largest KL", kl.argmax()),
    ):
        assert shown[reason]["row"] == row


def test_the_prompt_with_most_failures_is_among_them(evaluated):
    results = json.loads((evaluated / "results" / "evaluation_results.json").read_text())
    collection = read_samples(evaluated / "samples")
    counts = [
        sum(len(results["flags"].get(m.records[row][0]["id"], [])) for m in collection.policies)
        for row in range(64)
    ]
    rows = [choice["row"] for choice in results["samples_shown"]["prompts"]]
    assert int(np.argmax(counts)) in rows and max(counts) > 0
