import json
from dataclasses import replace

import pytest

from rlhf_recipes.evaluation.metrics.claims import win_claim
from rlhf_recipes.evaluation.metrics.comparisons import Controls
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.typed_json import as_json
from rlhf_recipes.evaluation.report.caveats import caveats
from rlhf_recipes.evaluation.results import evaluation_results
from tests.evaluation.changing import rate_like


@pytest.fixture(scope="module")
def results(evaluated):
    return json.loads((evaluated / "results" / "evaluation_results.json").read_text())


def results_of(collection):
    results, _ = evaluation_results(collection)
    return replace(results, warnings=caveats(results, collection))


def collection_of(folder, records_of, collection_in, samples=1, prompts=40, **effects):
    models = {"base": records_of("base", (0, 0, 0), prompts, samples)}
    models |= {name: records_of(name, effect, prompts, samples) for name, effect in effects.items()}
    return read_samples(collection_in(folder / "out", models) / "samples")


def test_models_and_shape(results):
    assert list(results["models"]) == ["base", "ppo", "grpo", "dpo"]
    for model in results["models"].values():
        assert {"win_rate", "reward", "gold", "kl", "length", "failures", "frontier"} <= set(model)
        assert {"seq", "token", "ci"} <= set(model["kl"])
    ppo = results["models"]["ppo"]["win_rate"]["gold"]
    assert {"value", "ci", "wins", "ties", "losses", "p", "p_holm"} <= set(ppo)
    assert len(ppo["ci"]) == 2 and ppo["wins"] + ppo["ties"] + ppo["losses"] == 64
    assert set(results["models"]["base"]["win_rate"].values()) == {None}
    assert results["schema_version"] == 6


def test_verdicts_find_the_planted_effects(results):
    verdicts = {name: model.get("verdict") for name, model in results["models"].items()}
    assert verdicts["ppo"] == verdicts["grpo"] == "better"
    assert verdicts["dpo"] == "no detectable difference"


@pytest.mark.parametrize(
    ("value", "ci", "p_holm", "n", "expected"),
    [
        (0.54, [0.443, 0.634], 0.48, 100, "no detectable difference"),
        (0.65, [0.52, 0.76], 0.06, 100, "no detectable difference"),  # the correction takes it back
        (0.65, [0.49, 0.76], 0.03, 100, "no detectable difference"),  # the interval covers one half
        (0.72, [0.625, 0.799], 0.001, 100, "better"),
        (1.0, [0.7, 1.0], 0.004, 9, "too few prompts"),
        (0.28, [0.201, 0.375], 0.001, 100, "worse"),
    ],
)
def test_a_direction_needs_the_test_the_interval_and_ten_prompts(value, ci, p_holm, n, expected):
    assert win_claim(rate_like(value=value, ci=ci, p_holm=p_holm, n=n)) == expected


def test_holm_is_over_the_policies_of_a_metric(results):
    rates = [results["models"][n]["win_rate"]["gold"] for n in ("ppo", "grpo", "dpo")]
    smallest = min(rates, key=lambda rate: rate["p"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])


def test_policies_are_compared_with_each_other(results):
    assert list(results["pairwise"]) == ["ppo vs grpo", "ppo vs dpo", "grpo vs dpo"]
    assert results["pairwise"]["ppo vs dpo"]["gold"]["p_holm"] < 0.05


def test_the_control_ties_and_has_no_kl(results):
    control = results["controls"]["control"]
    assert control["passed"] and control["kl"]["seq"] == 0


def test_without_a_control_the_object_is_empty(tmp_path, records_of, collection_in):
    found = results_of(collection_of(tmp_path, records_of, collection_in, dpo=(0.5, 5, 1)))
    assert found.controls == Controls()
    assert any("No control" in warning for warning in found.warnings)


def test_a_control_with_any_kl_fails(tmp_path, records_of, collection_in):
    collection = collection_of(
        tmp_path, records_of, collection_in, dpo=(0.5, 5, 1), control=(0, 0, 0.001)
    )
    control = results_of(collection).controls.control
    assert not control.passed and control.failed_on == ["kl"]


@pytest.mark.parametrize(("samples", "expected"), [(1, []), (3, []), (4, [1, 2, 4])])
def test_best_of_n_needs_four_samples(tmp_path, records_of, collection_in, samples, expected):
    collection = collection_of(
        tmp_path, records_of, collection_in, samples, prompts=10, dpo=(0.5, 5, 1)
    )
    rows = results_of(collection).best_of_n
    assert [row.n for row in rows] == expected
    if rows:
        rewards = collection.base.values("reward")
        assert rows[0].by_metric["proxy"].mean == pytest.approx(rewards.mean())
        assert rows[-1].by_metric["proxy"].mean == pytest.approx(rewards.max(axis=1).mean())


def test_without_gold_everything_of_gold_is_null(tmp_path, records_of, collection_in):
    models = {n: records_of(n, (0, 0, 1), 10, 1, gold=False) for n in ("base", "dpo")}
    found = results_of(read_samples(collection_in(tmp_path / "o", models) / "samples"))
    assert found.models["dpo"].gold is None
    assert found.models["dpo"].win_rate.get("gold") is None
    assert found.over_optimization is None and found.config.primary == "proxy"
    assert any("No gold" in warning for warning in found.warnings)
    json.dumps(as_json(found), allow_nan=False)


def test_rewards_that_do_not_vary_in_base_give_no_nan(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 1), 10, 1) for name in ("base", "dpo")}
    for record in models["base"]:
        record["gold"] = 1.0
    found = results_of(read_samples(collection_in(tmp_path / "o", models) / "samples"))
    json.dumps(as_json(found), allow_nan=False)
    assert "does not vary" in found.models["dpo"].gold.gain.unit
    assert found.over_optimization is None


def test_float_noise_between_two_batches_is_no_win(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 0), 10, 1) for name in ("base", "dpo")}
    for mine, other in zip(models["dpo"], models["base"], strict=True):
        mine["reward"] = other["reward"] + 2e-7
    found = results_of(read_samples(collection_in(tmp_path / "o", models) / "samples"))
    assert found.models["dpo"].win_rate["proxy"].ties == 10


def test_all_ties_and_empty_responses_give_results(tmp_path, records_of, collection_in):
    models = {name: records_of(name, (0, 0, 0), 10, 1) for name in ("base", "dpo")}
    for record in models["base"] + models["dpo"]:
        record |= {"reward": 0.0, "gold": 0.0, "response": "", "n_tokens": 0}
    found = results_of(read_samples(collection_in(tmp_path / "o", models) / "samples"))
    json.dumps(as_json(found), allow_nan=False)
    assert found.models["dpo"].win_rate["gold"].value == 0.5
    assert found.models["dpo"].verdict == "no detectable difference"
    assert found.models["dpo"].failures["empty"].rate == 1
    said = " ".join(found.warnings)
    assert (
        "dpo: every completion is empty" in said and "all 10 prompts tie with base by gold" in said
    )
