"""The benchmarks on a model of two layers: both sides do the same work, and the record is right."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench, dpo, evaluate, figures, growth, grpo, ppo, reward, startup
from benchmarks.cases import Setting
from benchmarks.measure import flop_counter, measured_steps, peak_memory_gb
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.rewards import RewardModel
from tests import benchmark_side

CONTRACT = set("name peer unit ours theirs speedup memory_ratio equal flops_share".split())


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    """Short pairs with prompts several times as long as their answers."""
    folder = tmp_path_factory.mktemp("benchmark")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{i} is a number. Which one comes next?"}],
            "chosen": [{"role": "assistant", "content": f"{i + 1}."}],
            "rejected": [{"role": "assistant", "content": f"{i - 1}, no?"}],
        }
        for i in range(48)  # a tenth is held out
    ]
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return Setting(folder, str(data), base="tiny")


def trained(stage, case, side):
    """What a side's training reports; its steps are counted instead of timed."""
    case = {**case, "training": {**case["training"], "max_steps": 2}}
    return measured_steps(stage.build({**case, "side": side}), count_flops=True)


@pytest.mark.parametrize("stage", [reward, dpo, grpo], ids=lambda stage: stage.__name__)
def test_both_sides_of_a_stage_compute_the_same_and_ours_with_fewer_operations(stage, setting):
    (case,) = stage.cases(setting)
    case |= case.get("equality", {})
    ours, theirs = (trained(stage, case, side) for side in ("ours", "theirs"))
    assert len(ours["values"]) == 4
    assert ours["values"] == pytest.approx(theirs["values"], rel=1e-4, abs=1e-5)
    assert 0 < ours["flops"] < 0.8 * theirs["flops"]


def test_both_sides_of_grpo_sample_and_train(setting):
    (case,) = grpo.cases(setting)
    for side in ("ours", "theirs"):
        trainer = grpo.build({**case, "side": side})
        assert (trainer.rollout_func is None) == (side == "theirs")
        assert measured_steps(trainer, count_flops=False)["seconds"] > 0
        assert trainer.state.global_step == 2


def test_both_evaluations_find_the_same_divergences(setting):
    (case,) = evaluate.cases(setting)
    found = [side(case) for side in (evaluate.ours, evaluate.theirs)]
    mine, peer = (divergences() for _, divergences in found)
    assert mine == pytest.approx(peer, rel=1e-4)
    assert min(mine) > 0
    assert [len(sample(case["prompts"][:2])) for sample, _ in found] == [2, 2]


def test_both_evaluations_give_a_response_the_same_reward(setting):
    (case,) = evaluate.cases(setting)
    scorer = RewardModel.load(case["reward"])
    for side in (evaluate.ours, evaluate.theirs):
        sample, _ = side(case)
        (found,) = sample(case["prompts"][:1])
        reward = scorer([case["prompts"][0]], [found["response"]])[0]
        assert found["reward"] == pytest.approx(reward, abs=1e-5)
        assert found["kl"] > 0


def test_ppo_trains_on_as_many_prompts_as_its_batch_has(setting):
    case = next(c for c in ppo.cases(setting) if c["name"] == "four by four")
    assert len(case["prompts"]) * case["num_generations"] == case["units"] == 8
    trainer = ppo.build({**case, "response_length": 4, "side": "ours"})
    assert len(ppo.scores(case, trainer)) == 4
    trainer.train()
    # 4 epochs of 4 minibatches.
    assert trainer.state.global_step == 16


def test_the_record_of_a_case(tmp_path, capsys):
    """Ours takes 1 s for 2 units, the peer 6 s."""
    reports = {
        "ours": {"seconds": 1.0, "values": [0.5, 2.0], "peak_gb": 1.0, "mean_length": 7.0},
        "theirs": {"seconds": 6.0, "values": [0.5, 2.25], "peak_gb": 4.0},
    }
    case = {
        "name": "two units",
        "folder": str(tmp_path),
        "units": 2,
        "flops": 8e9,
        "count_flops": False,
        "reports": reports,
    }
    options = argparse.Namespace(runs=2, peer_python=sys.executable)
    found = bench.compare(benchmark_side, case, options, peak=16e9)
    assert set(found) == CONTRACT
    assert found["ours"] == {
        "seconds": 0.5,
        "peak_gb": 1.0,
        "seconds_by_run": [0.5, 0.5],
        "completion_tokens": 7.0,
    }
    assert found["theirs"]["seconds"] == 3.0
    assert found["speedup"] == {"median": 6.0, "min": 6.0, "max": 6.0}
    assert found["memory_ratio"] == 4.0
    assert found["equal"] == {"what": "losses", "difference": 0.25}
    # 4e9 operations a unit in 0.5 s are half of 16e9 a second.
    assert found["flops_share"] == pytest.approx(0.5)
    assert "6.00x [6.00, 6.00]" in bench.table("dpo", found)

    record = {"stage": "dpo", "cases": [found], **bench.machine()}
    assert {"versions", "machine"} <= set(record)
    figures.draw(record, tmp_path / "dpo.png")
    assert (tmp_path / "dpo.png").stat().st_size > 10_000


def test_the_speedup_is_that_of_neighbouring_runs():
    """A machine that is twice as slow in the second round changes no ratio."""
    ratios = bench.ratios([1.0, 2.0, 1.0], [3.0, 6.0, 4.0])
    assert ratios == {"median": 3.0, "min": 3.0, "max": 4.0}


def test_growth_measures_every_size_on_both_sides_with_equal_gradients(setting, tmp_path):
    found = growth.record(setting, lengths=(8, 16), sizes=(2, 4), repeats=2)
    pairs, groups = found["curves"]
    assert [point["size"] for point in pairs["points"]] == [8, 16]
    assert [point["size"] for point in groups["points"]] == [2, 4]
    for point in pairs["points"] + groups["points"]:
        assert point["difference"] < 1e-4
        assert all(len(point[side]["seconds_by_run"]) == 2 for side in growth.SIDES)
    figures.draw({"stage": "growth", **found, **bench.machine()}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_package_is_imported_in_a_tenth_of_a_second():
    assert startup.import_seconds() < 0.1


def test_attention_on_a_cpu_is_counted():
    """Scores and values, 2 multiplications each of (2 heads) 5 x 7 x 4: 2 * 2 * 2 * 5 * 7 * 4."""
    query, key = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 1120


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    ballast = torch.ones(250_000_000)  # 1 GB
    code = "from benchmarks.measure import peak_memory_gb; print(peak_memory_gb())"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=bench.ROOT
    )
    assert peak_memory_gb() > 1 > float(ran.stdout)
    del ballast


def test_too_few_pairs_are_an_error(setting):
    with pytest.raises(RecipeError, match="has 43 training pairs of at most 256 tokens, and this"):
        setting.pairs(44)


@pytest.mark.slow
def test_a_stage_is_run_from_the_command_line(tmp_path, setting):
    command = "-m benchmarks.bench reward --base tiny --runs 1".split()
    ran = subprocess.run(
        [
            sys.executable,
            *command,
            "--dataset_name",
            setting.dataset_name,
            "--output_dir",
            tmp_path,
        ],
        cwd=Path(bench.ROOT),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "losses and gradient norms differ by at most" in ran.stdout
    record = json.loads((tmp_path / "reward.json").read_text())
    assert set(record["cases"][0]) == CONTRACT
    assert record["cases"][0]["equal"]["difference"] < 1e-3
    assert (tmp_path / "reward.png").is_file()
