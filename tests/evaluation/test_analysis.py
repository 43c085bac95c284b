import json
import os
import re
import subprocess
import sys

import pytest
from matplotlib.image import imread

from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.report.rendering import closing_table

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def leaves(data):
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from leaves(value)
            if key.endswith("_seconds"):
                yield from (value / 60, value / 3600)
    elif isinstance(data, list):
        for value in data:
            yield from leaves(value)
    elif data is not None:
        yield data


def shown_samples(output):
    """Scores, KL and length of the samples that the report shows, from samples/."""
    results = json.loads((output / "results" / "evaluation_results.json").read_text())
    ids = {choice["prompt_id"] for choice in results["samples_shown"]["prompts"]}
    for path in (output / "samples").glob("*_samples.json"):
        for r in json.loads(path.read_text()):
            if r["prompt_id"] in ids and r["sample_index"] == 0:
                yield [r[key] for key in ("reward", "gold", "scores", "kl", "n_tokens") if key in r]


def stated(output):
    """Every number of the JSON files as it may be rounded, and those inside their texts."""
    numbers, texts = [], set()
    results = [json.loads(path.read_text()) for path in (output / "results").glob("*.json")]
    for leaf in leaves([*results, *shown_samples(output)]):
        if isinstance(leaf, str):
            texts |= {found.lstrip("+") for found in NUMBER.findall(leaf)}
        elif not isinstance(leaf, bool):
            numbers += [leaf, 100 * leaf]
    return numbers, texts


def is_stated(token, numbers, texts):
    token = token.lstrip("+")
    if token in texts or float(token) == 0:
        return True
    if "e" in token or abs(float(token)) < 0.01:
        return any(f"{n:.2g}" == f"{float(token):.2g}" for n in numbers)
    decimals = len(token.partition(".")[2])
    return any(f"{n:.{decimals}f}" == token or f"{n:.2g}" == token for n in numbers)


def prose(output):
    text = (output / "ANALYSIS.md").read_text()
    return re.sub(r"(`{3,})text\n.*?\n\1", "", text, flags=re.DOTALL)


def test_everything_is_written(evaluated):
    assert {path.name for path in (evaluated / "results").iterdir()} == {
        "evaluation_results.json",
        "failure_analysis.json",
        "reward_model_errors.json",
        "pareto_frontier.png",
        "reward_distributions.png",
        "win_rates.png",
        "training_curves.png",
        "kl.png",
        "reward_model.png",
        "report.html",
    }
    for figure in (evaluated / "results").glob("*.png"):
        assert imread(figure).shape[1] > 1000


@pytest.mark.parametrize("run", ["evaluated", "searched"])
def test_every_number_of_the_analysis_is_in_the_json(run, request):
    output = request.getfixturevalue(run)
    numbers, texts = stated(output)
    found = NUMBER.findall(prose(output))
    assert len(found) > 300
    assert [token for token in found if not is_stated(token, numbers, texts)] == []


def test_a_number_that_is_not_in_the_json_is_noticed(evaluated):
    numbers, texts = stated(evaluated)
    assert not is_stated("7.77", numbers, texts)


def test_the_same_files_give_the_same_bytes(evaluated):
    names = ("ANALYSIS.md", "results/report.html", "results/evaluation_results.json")
    before = [(evaluated / name).read_bytes() for name in names]
    analyze(evaluated)
    assert [(evaluated / name).read_bytes() for name in names] == before


def tied_openings(records):
    """Two openings, each in half of a prompt's completions: none of them is more common."""
    for record in records:
        openings = ("I think that this is", "It may be that there")
        record["response"] = f"{openings[record['sample_index'] % 2]} {record['response']}"
    return records


def test_the_same_samples_give_the_same_bytes_under_any_hash_seed(
    tmp_path, records_of, collection_in
):
    models = {name: tied_openings(records_of(name, (0, 0, 1), 24, 4)) for name in ("base", "ppo")}
    written = []
    for seed in ("1", "2", "3"):
        output = collection_in(tmp_path / seed / "out", models)
        code = "from rlhf_recipes import analyze; analyze('out')"
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / seed, env=environment, check=True
        )
        files = sorted(path for path in output.rglob("*") if path.is_file())
        written.append({str(path.relative_to(output)): path.read_bytes() for path in files})
    assert len(written[0]) > 8
    assert written[0] == written[1] == written[2]


def test_failure_analysis_has_the_documented_shape(evaluated):
    failures = json.loads((evaluated / "results" / "failure_analysis.json").read_text())
    entry = failures["repetition"]["per_model"]["ppo"]
    expected = {"n", "count", "rate", "ci", "diff_vs_base", "diff_ci", "p", "p_holm", "examples"}
    assert set(entry) == expected
    assert entry["examples"][0] == "ppo-0003-0"


def test_analysis_names_examples_selection_controls_and_command(evaluated):
    text = (evaluated / "ANALYSIS.md").read_text()
    for said in ("`ppo-0003-0`", "drawn with seed 42", "Sanity check passed", "make evaluate"):
        assert said in text


def test_analysis_without_curves_gold_control_or_reward_model(tmp_path, records_of, collection_in):
    models = {n: records_of(n, (0, 0, 1), 12, 1, gold=False) for n in ("base", "ppo", "mine")}
    output = collection_in(tmp_path / "out", models)
    results = analyze(output)
    assert results.training_curves == {} and results.reward_model is None
    assert not (output / "results" / "training_curves.png").exists()
    assert "Training curves" not in (output / "ANALYSIS.md").read_text()
    assert "mine" in closing_table(results)
