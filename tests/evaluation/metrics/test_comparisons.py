import json
from dataclasses import replace

import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.claims import win_claim
from rlhf_recipes.evaluation.metrics.comparisons import (
    Gain,
    best_of_n_curve,
    controls,
    pairwise,
)
from rlhf_recipes.evaluation.metrics.frontier import dominance
from rlhf_recipes.evaluation.metrics.over_optimization import over_optimization
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.statistics import Interval
from rlhf_recipes.evaluation.metrics.win_rate import win_rate
from rlhf_recipes.evaluation.results import evaluation_results


@pytest.fixture(scope="module")
def results(searched):
    return json.loads((searched / "results" / "evaluation_results.json").read_text())


@pytest.fixture(scope="module")
def collection(searched):
    return read_samples(searched / "samples")


@pytest.fixture(scope="module")
def rewards(collection):
    models = evaluation_results(collection)[0].models
    return {name: model.rewards for name, model in models.items()}


def test_only_the_end_of_a_run_is_tested(results):
    tested = [n for n, m in results["models"].items() if "verdict" in m]
    assert tested == ["ppo-150", "grpo-150", "dpo-seed1", "dpo-seed2", "dpo-seed3"]
    rates = [results["models"][name]["win_rate"]["gold"] for name in tested]
    smallest = min(rates, key=lambda rate: rate["p"])
    assert smallest["p_holm"] == pytest.approx(5 * smallest["p"])
    assert "p_holm" not in results["models"]["ppo-25"]["win_rate"]["gold"]
    assert results["models"]["ppo-25"]["reward"]["difference"]["p_holm"] is None


def test_seeds_of_one_family_are_not_compared(results):
    assert list(results["pairwise"]) == [
        "ppo-150 vs grpo-150",
        *(f"{name} vs dpo-seed{seed}" for name in ("ppo-150", "grpo-150") for seed in (1, 2, 3)),
    ]


def test_policies_are_compared_sample_by_sample_on_the_same_prompts(collection, results):
    first, second = (collection.models[n].scores("gold") for n in ("ppo-150", "grpo-150"))
    pair = results["pairwise"]["ppo-150 vs grpo-150"]
    assert pair["gold"]["value"] == pytest.approx(win_rate(first, second).value)
    assert pair["difference"]["gold"]["mean"] == pytest.approx(first.mean() - second.mean())
    assert win_claim(pairwise(collection)["ppo-150 vs grpo-150"]["gold"]) == "worse"


def test_seeds_say_how_much_a_run_is_worth(results):
    found = results["families"]["dpo"]
    gains = [results["models"][name]["gold"]["gain"]["value"] for name in found["finals"]]
    assert found["between_seeds"]["n"] == 3
    assert found["between_seeds"]["gold"]["mean"] == pytest.approx(np.mean(gains))
    # Student's interval of three: t = 4.303 standard errors.
    half = 4.3027 * np.std(gains, ddof=1) / 3**0.5
    assert found["between_seeds"]["gold"]["ci"][1] == pytest.approx(np.mean(gains) + half, rel=1e-4)
    assert results["families"]["ppo"]["between_seeds"] is None
    (warning,) = [warning for warning in results["warnings"] if "One training seed" in warning]
    assert "One training seed of ppo, grpo:" in warning


def test_an_extra_judge_and_verdicts_have_their_win_rates(results):
    assert results["config"]["metrics"] == ["proxy", "brevity", "gold"]
    assert results["models"]["ppo-150"]["win_rate"]["brevity"]["n"] == 40
    assert results["models"]["ppo-150"]["scores"]["brevity"]["difference"]["p_holm"] <= 1
    chat = results["models"]["grpo-150"]["win_rate"]["chat"]
    assert chat["value"] == pytest.approx(30 / 40) and chat["p_holm"] == chat["p"]
    assert results["models"]["ppo-150"]["win_rate"]["chat"] is None


def test_base_sampled_again_is_a_tie_and_its_best_of_four_is_not(results):
    found = results["controls"]
    assert found["control"]["passed"] and found["control"]["kl"]["seq"] == 0
    positive = found["best_of_n"]
    assert positive["n"] == 4 and positive["expected"] == 0.8 and positive["passed"]
    low, high = positive["win_rate"]["proxy"]["ci"]
    assert low < 0.8 < high


def test_a_proxy_that_does_not_vary_fails_the_positive_control(searched):
    collection = read_samples(searched / "samples")
    for model in (collection.base, collection.control):
        for record in model.flat:
            record["reward"] = 1.0
    assert not controls(collection).best_of_n.passed


def test_best_of_n_by_the_proxy_gains_in_gold_too(results):
    rows = results["best_of_n"]
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert rows[0]["proxy"]["gain"] == pytest.approx(0, abs=1e-12)
    gains = [row["gold"]["gain"] for row in rows]
    assert gains[0] < gains[1] < gains[2] and rows[2]["gold"]["gain_ci"][0] > 0


def test_more_samples_of_base_than_of_the_policies_are_welcome(tmp_path, records_of, collection_in):
    models = {
        "base": records_of("base", (0, 0, 0), 10, 8),
        "dpo": records_of("dpo", (1, 9, 2), 10, 1),
    }
    few = read_samples(collection_in(tmp_path / "out", models) / "samples")
    assert [row.n for row in best_of_n_curve(few)] == [1, 2, 4, 8]
    assert pairwise(few) == {}


def test_the_frontier_is_that_of_the_points(results):
    names = list(results["models"])
    for metric, field in (("gold", "gold"), ("proxy", "reward")):
        kl = np.array([results["models"][n]["kl"]["seq"] for n in names])
        reward = np.array([results["models"][n][field]["mean"] for n in names])
        beaten = dominance(kl, reward).any(axis=0)
        assert results["frontier"][metric]["front"] == [
            n for n, b in zip(names, beaten, strict=True) if not b
        ]
    for model in results["models"].values():
        found = model["frontier"]["gold"]
        assert found["dominated"] == (found["probability"] <= 0.05)
        assert found["dominated"] or not found["dominated_by"]
        assert not (found["on_front"] and found["dominated_by"])
    doubtful = [m["frontier"]["gold"]["probability"] for m in results["models"].values()]
    assert any(0.05 < probability < 1 for probability in doubtful)
    assert results["models"]["ppo-150"]["frontier"]["gold"]["dominated"]


def test_two_runs_are_compared_at_the_kl_that_both_reach(results):
    (found,) = results["frontier"]["gold"]["matched"]
    assert found["families"] == ["ppo", "grpo"]
    assert found["kl"] == pytest.approx(results["models"]["grpo-150"]["kl"]["seq"])
    assert found["ci"][0] < found["difference"] < found["ci"][1]
    assert found["difference"] < 0 and found["p_holm"] == found["p"] < 0.05


def test_the_gap_is_that_of_the_two_gains(results):
    for name, policy in results["over_optimization"]["policies"].items():
        by_proxy, by_gold = (results["models"][name][k]["gain"] for k in ("reward", "gold"))
        gap = by_proxy["value"] - by_gold["value"]
        assert policy["gap"] == pytest.approx(gap)
        assert policy["gap_ci"][0] < gap < policy["gap_ci"][1]


@pytest.mark.parametrize(
    ("proxy", "gold", "expected"),
    [
        ([0.1, 0.3], [-0.3, -0.1], True),
        ([0.1, 0.3], [-0.3, 0.1], False),
        ([-0.1, 0.3], [-0.3, -0.1], False),
    ],
)
def test_over_optimized_needs_both_intervals(rewards, collection, proxy, gold, expected):
    ppo = {
        metric: replace(
            rewards["ppo-150"][metric],
            gain=Gain(sum(ends) / 2, Interval(*ends), "sd of base"),
            difference=replace(rewards["ppo-150"][metric].difference, p_holm=0.01),
        )
        for metric, ends in {"proxy": proxy, "gold": gold}.items()
    }
    found = over_optimization(collection, rewards | {"ppo-150": ppo})
    assert found.policies["ppo-25"].over_optimized is None
    assert found.policies["ppo-150"].over_optimized is expected


def test_a_proxy_that_rises_while_gold_falls_is_over_optimized(results):
    assert results["over_optimization"]["policies"]["ppo-150"]["over_optimized"]
    assert not results["over_optimization"]["policies"]["grpo-150"]["over_optimized"]
