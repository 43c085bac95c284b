import json

import numpy as np
import pytest

from rlhf_recipes.evaluation.analysis import analyze


def planted(records_of, name, words, prompts=60):
    """Answers of a given length: the proxy likes length, gold wants twelve words."""
    rng = np.random.default_rng(words)
    records = records_of(name, (0, 0, 2), prompts, 2)
    for record in records:
        n = max(1, round(rng.normal(words, 3)))
        record["response"] = " ".join(f"word{i}" for i in range(n))
        record["n_tokens"] = n
        record["kl_curve"] = [record["kl"] / n] * n
        record["reward"] = n / 10 + rng.normal(0, 0.1)
        record["gold"] = -abs(n - 12) / 10 + rng.normal(0, 0.1)
    return records


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory, records_of, collection_in):
    lengths = {"base": 8, "pad": 40, "honest": 12}
    models = {name: planted(records_of, name, words) for name, words in lengths.items()}
    output = collection_in(tmp_path_factory.mktemp("shortcut") / "out", models)
    analyze(output)
    return output


def test_only_the_length_shortcut_is_over_optimized(shortcut):
    found = json.loads((shortcut / "results" / "evaluation_results.json").read_text())
    policies = found["over_optimization"]["policies"]
    assert policies["pad"]["over_optimized"] is True
    pad = found["models"]["pad"]
    assert pad["reward"]["gain"]["value"] > 0 > pad["gold"]["gain"]["value"]
    assert policies["honest"]["over_optimized"] is False
    assert found["models"]["pad"]["verdict"] == "worse"
    assert found["models"]["honest"]["verdict"] == "better"


def test_proxy_gold_correlation_is_negative_on_padded_answers(shortcut):
    results = json.loads((shortcut / "results" / "evaluation_results.json").read_text())
    found = results["over_optimization"]
    assert (
        found["spearman_base"]["value"] > 0.5 and found["policies"]["pad"]["spearman"]["value"] < 0
    )


def test_padded_answers_are_flagged_and_reported(shortcut):
    results = json.loads((shortcut / "results" / "evaluation_results.json").read_text())
    pad = results["models"]["pad"]["failures"]
    assert pad["reward_hack_suspect"]["rate"] > 0.9 and pad["length_blow_up"]["rate"] > 0.9
    assert results["models"]["honest"]["failures"]["reward_hack_suspect"]["rate"] < 0.2
    text = (shortcut / "ANALYSIS.md").read_text()
    assert "**pad** is over-optimized: the proxy rose and gold fell" in text
    assert "**honest** is over-optimized" not in text


def test_the_warning_of_length_goes_with_it(shortcut):
    results = json.loads((shortcut / "results" / "evaluation_results.json").read_text())
    assert any("pad: its completions are longer" in warning for warning in results["warnings"])
