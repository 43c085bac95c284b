"""`make gpu-check` on a CPU: the same scripts and the same table, on a tiny model."""

import argparse
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench, gpu_check
from benchmarks.gpu_check import Case, Check
from benchmarks.recipe_run import Clock, planned_gb
from benchmarks.synthetic import TINY, word_tokenizer, write_model, write_pairs
from rlhf_recipes.models.loading import open_base
from rlhf_recipes.prompts import prompt_ids

SHARED = [Case(stage, "bf16", True) for stage in gpu_check.STAGES]


def started(tmp_path, *flags):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--size", "tiny", *flags]
    ended = subprocess.run(
        [*command, "--output_dir", str(tmp_path)], cwd=bench.ROOT, capture_output=True, text=True
    )
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    return ended, {result["name"]: result for result in record["cases"]}


@pytest.mark.slow
def test_every_stage_is_measured_beside_its_plan(tmp_path):
    ended, results = started(tmp_path, "--steps", "8", "--only", "bf16, shared")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(results) == [case.name for case in SHARED]
    for case in SHARED:
        result = results[case.name]
        assert result["plan_gb"] > 0
        assert result["peak_gb"] > 0.2  # torch alone takes more
        assert result["stage_seconds"] > 0
        assert case.name in ended.stdout
        if case.stage != "evaluate":
            assert result["steps"] == 8
            seconds = result["seconds_per_step"]
            assert 0 < 4 * seconds < result["stage_seconds"]
            completion = result.get("completion_tokens", 8)
            assert (case.stage in ("ppo", "grpo")) == ("completion_tokens" in result)
            # recipes/tiny: 4 pairs or completions per step, in PPO 2.
            rows = {"reward": 8, "dpo": 8, "ppo": 2, "grpo": 4}[case.stage]
            tokens = rows * (32 + completion)
            assert result["tokens_per_second"] == pytest.approx(tokens / seconds)
    assert "no GPU" in ended.stdout


@pytest.mark.slow
def test_it_goes_on_past_a_failure_and_ends_with_status_1(tmp_path):
    ended, results = started(tmp_path, "--steps", "0", "--only", "dpo, bf16, ")
    assert ended.returncode == 1
    assert list(results) == ["dpo, bf16, shared prefixes", "dpo, bf16, stock prefixes"]
    for result in results.values():
        assert result["error"].startswith("RecipeError: ")
    assert ended.stdout.count("FAILED: RecipeError") == 2
    assert "2 of 2 cases failed" in ended.stdout


@pytest.fixture
def check(tmp_path):
    options = argparse.Namespace(size="tiny", steps=2, seconds=60, case_seconds=5, only="")
    return Check(tmp_path, options)


def test_what_cannot_be_run_is_skipped_with_the_reason(check, monkeypatch):
    assert check.reason_to_skip(SHARED[0]) == ""
    assert check.reason_to_skip(Case("ppo", "bf16", True)) == "there is no reward model"
    monkeypatch.setattr(gpu_check, "installed", lambda package: None)
    assert "bitsandbytes is not" in check.reason_to_skip(Case("dpo", "4-bit", True))
    check.walls["dpo"] = 100.0
    assert check.reason_to_skip(Case("dpo", "bf16", True)) == "no time left"
    assert check.reason_to_skip(Case("reward", "bf16", True)) == ""


def python(code):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def test_a_process_that_dies_without_a_report_is_a_failure_with_its_last_line(check):
    code = "import sys; sys.stderr.write('first\\nillegal memory access\\n'); sys.exit(9)"
    result = check.measure(python(code), SHARED[1])
    assert result == {"error": "The process ended with status 9: illegal memory access"}


def test_a_process_that_hangs_is_killed(check):
    check.options.case_seconds = 0.2
    process = python("import time; time.sleep(60)")
    result = check.measure(process, SHARED[1])
    assert "longer than 1 s" in result["error"]
    assert process.returncode is not None
    check.deadline = time.monotonic()
    result = check.measure(python("import time; time.sleep(60)"), SHARED[1])
    assert result == {"skipped": "no time left to finish"}


def step_ends(seconds, **args):
    """What a clock says of steps that end at these times."""
    clock = Clock(1e9)
    clock.ends = list(seconds)
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **args}
    state = SimpleNamespace(log_history=[{"completions/mean_length": n} for n in (4, 6)])
    clock.on_train_end(SimpleNamespace(**args), state, None)
    return clock.facts


def test_the_first_step_is_not_counted():
    facts = step_ends([10, 12, 14, 16])
    assert facts["seconds_per_step"] == 2
    assert (facts["steps"], facts["rows_per_step"], facts["completion_tokens"]) == (4, 8, 5)
    assert "seconds_per_step" not in step_ends([10])


def test_whole_rollouts_of_ppo_are_counted():
    """Two steps per rollout, which takes 8 s in the first of them; the last one is half."""
    ends = [8, 9, 17, 18, 26, 27, 35]
    facts = step_ends(ends, num_mini_batches=2, num_ppo_epochs=1)
    assert facts["seconds_per_step"] == (27 - 9) / 4


def test_a_clock_ends_a_training_that_has_used_its_seconds():
    control = SimpleNamespace(should_training_stop=False)
    Clock(60).on_step_end(None, None, control)
    assert not control.should_training_stop
    Clock(-1).on_step_end(None, None, control)
    assert control.should_training_stop


def test_the_peak_of_a_plan_is_read_in_gb():
    assert (
        planned_gb("memory  estimate\n  adapters     8.10 GB\n  peak           12.34 GB\n") == 12.34
    )
    assert planned_gb("  peak           512.00 MB") == pytest.approx(0.512)


def test_the_speedup_is_that_over_the_same_case_with_stock_prefixes():
    names = [f"dpo, bf16, {kind} prefixes" for kind in ("shared", "stock")]
    results = [{"name": n, "seconds_per_step": s} for n, s in zip(names, (2.0, 6.0), strict=True)]
    shared, stock = gpu_check.with_speedups(results)
    assert shared["speedup"] == 3.0
    assert "speedup" not in stock
    failed = [results[0] | {"speedup": None}, {"name": names[1], "error": "x"}]
    assert gpu_check.with_speedups(failed)[0]["speedup"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_tiny_size_runs(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--output_dir", str(tmp_path)],
        cwd=bench.ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "There is no GPU" in ended.stderr
    assert "SIZE=tiny" in ended.stderr


def test_the_model_and_the_pairs_have_the_sizes_that_are_asked_for(tmp_path):
    write_model(tmp_path / "model", TINY)
    model = open_base(str(tmp_path / "model"), dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.head_dim == 16
    assert model.get_input_embeddings().weight.shape == (512, 64)
    write_pairs(tmp_path / "pairs.jsonl", 512, count=3, prompt=32, completion=8)
    tokenizer = word_tokenizer(512)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len({row["prompt"][0]["content"] for row in rows}) == 3
    for row in rows:
        assert len(prompt_ids(tokenizer, row["prompt"])) == 32
        for side in ("chosen", "rejected"):
            ids = tokenizer(row[side][0]["content"])["input_ids"]
            assert len(ids) == 8
            assert tokenizer.decode(ids) == row[side][0]["content"]
