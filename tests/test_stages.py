"""Every stage as its user starts it: a process under `accelerate launch`, on a tiny model."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_recipes.models.loading import open_tokenizer

pytestmark = pytest.mark.slow

STAGES = ("prepare_data", "sft", "reward", "dpo", "grpo", "ppo", "evaluate")
POLICIES = ("dpo", "grpo", "ppo")


def launch(root: Path, stage: str, recipe: str, out: Path, *flags: str, processes: int = 1):
    """Run a stage of a recipe with its outputs in `out`; the finished process."""
    config = "single" if processes == 1 else "cpu_ddp"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", f"accelerate_configs/{config}.yaml"),
        *(f"recipes/{stage}.py", "--config", f"{recipe}/{stage}.yaml"),
    ]
    if stage != "prepare_data":
        command += ["--dataset_name", f"{out}/data"]
    run_folder = stage in ("sft", "reward", *POLICIES)
    command += ["--output_dir", f"{out}/models/{stage}_model" if run_folder else str(out)]
    if processes > 1:
        command += ["--use_cpu"]
    if stage in ("grpo", "ppo", "evaluate"):
        command += ["--reward_model_path", f"{out}/models/reward_model"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    return subprocess.run(
        [*command, *flags], cwd=root, env=environment, capture_output=True, text=True
    )


def succeed(*arguments, **options):
    done = launch(*arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def workspace(root, tmp_path_factory):
    """All seven stages of recipes/tiny, in one process each."""
    out = tmp_path_factory.mktemp("tiny") / "outputs"
    for stage in STAGES:
        done = succeed(root, stage, "recipes/tiny", out)
    (out / "closing_table.txt").write_text(done.stdout)
    return out


def read(path: Path):
    def refuse(word):
        raise AssertionError(f"{word} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_run_folders_hold_what_later_stages_and_readers_need(workspace):
    for name in ("sft", "reward", *POLICIES):
        folder = workspace / "models" / f"{name}_model"
        present = {path.name for path in folder.iterdir()}
        assert present >= {
            "adapter_config.json",
            "adapter_model.safetensors",
            "tokenizer.json",
            "recipe.yaml",
            "run.json",
            "trainer_state.json",
            "all_results.json",
            "training_curves.png",
            "README.md",
        }, name
        record = read(folder / "run.json")
        assert record["stage"] == name
        assert record["duration_seconds"] > 0
        assert record["peak_memory_gb"] > 0
        assert (
            record["dataset_fingerprint"]
            == read(workspace / "data" / "run.json")["dataset_fingerprint"]
        )
        assert (workspace / f"training_{name}.log").read_text().count("\n") >= 2
    for name in ("grpo", "ppo"):
        assert list((workspace / "models" / f"{name}_model" / "completions").glob("*.parquet"))


def test_the_results_hold_every_file_and_no_nan(workspace):
    results = workspace / "results"
    for name in (
        *("pareto_frontier.png", "reward_distributions.png", "win_rates.png"),
        *("training_curves.png", "report.html"),
    ):
        assert (results / name).stat().st_size > 1000, name
    evaluation = read(results / "evaluation_results.json")
    assert set(evaluation["models"]) == {"base", *POLICIES}
    read(results / "failure_analysis.json")
    read(results / "reward_model_errors.json")
    for name in ("base", *POLICIES):
        samples = read(workspace / "samples" / f"{name}_samples.json")
        assert len(samples) >= 20
        assert all({"prompt", "response", "reward", "kl"} <= set(sample) for sample in samples)
    assert (workspace / "ANALYSIS.md").stat().st_size > 500
    assert "report.html" in (workspace / "closing_table.txt").read_text()


def test_the_reward_model_is_measured_on_the_pairs_it_was_looked_into_on(workspace):
    folder = workspace / "models" / "reward_model"
    margins = [p["chosen_reward"] - p["rejected_reward"] for p in read(folder / "scores.json")]
    metrics = read(folder / "run.json")["metrics"]
    assert metrics["eval_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    losses = [math.log1p(math.exp(-margin)) for margin in margins]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(losses))
    log = read(folder / "trainer_state.json")["log_history"]
    assert [entry["eval_loss"] for entry in log if "eval_loss" in entry] == [metrics["eval_loss"]]


def test_a_recipe_that_a_run_left_behind_reproduces_it(root, workspace, tmp_path):
    """The same weights to the last bit, from recipe.yaml alone and another output folder."""
    for name in ("reward", "ppo"):
        first = workspace / "models" / f"{name}_model"
        again = tmp_path / name
        done = subprocess.run(
            [
                *(sys.executable, f"recipes/{name}.py", "--config", str(first / "recipe.yaml")),
                *("--output_dir", str(again)),
            ],
            cwd=root,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        weights = "adapter_model.safetensors"
        assert (again / weights).read_bytes() == (first / weights).read_bytes()


def test_a_finished_run_is_not_replaced_unasked(root, workspace):
    record = workspace / "models" / "reward_model" / "run.json"
    before = record.read_bytes()
    done = subprocess.run(
        [
            *(sys.executable, "recipes/reward.py", "--config", "recipes/tiny/reward.yaml"),
            *("--dataset_name", f"{workspace}/data", "--output_dir", str(record.parent)),
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "already contains a finished run" in done.stderr
    assert "Traceback" not in done.stderr
    assert record.read_bytes() == before


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "grpo", "ppo"])
def test_a_stage_runs_on_two_processes(root, workspace, tmp_path, stage):
    folder = tmp_path / "models" / f"{stage}_model"
    succeed(
        *(root, stage, "recipes/tiny", tmp_path),
        *("--dataset_name", f"{workspace}/data"),
        *("--output_dir", str(folder)),
        *(
            ("--reward_model_path", f"{workspace}/models/reward_model")
            if stage in ("grpo", "ppo")
            else ()
        ),
        processes=2,
    )
    assert read(folder / "run.json")["processes"] == 2


def kill_when(reached: Callable[[], bool], command: list[str], root: Path) -> None:
    """Start a run and kill it, with all its processes, when it has reached something."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not reached():
            time.sleep(0.01)
        assert process.poll() is None, "it had finished before"
        launcher = psutil.Process(process.pid)
        for each in [*launcher.children(recursive=True), launcher]:
            each.kill()  # SIGKILL


def test_ppo_killed_again_and_again_ends_as_if_it_had_not_been(root, workspace, tmp_path):
    """SIGKILL of two processes when a checkpoint is half written, twice; the same command again."""
    scores = f"{workspace}/models/reward_model"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", "accelerate_configs/cpu_ddp.yaml", "recipes/ppo.py", "--use_cpu"),
        *("--config", "recipes/tiny/ppo.yaml", "--reward_model_path", scores),
        *("--dataset_name", f"{workspace}/data", "--kl_target", "0.01", "--save_strategy", "steps"),
        *("--save_steps", "1", "--max_steps", "7", "--learning_rate", "0.01"),
    ]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder, steps in ((straight, ()), (killed, (2, 5))):
        for step in steps:
            checkpoint = folder / f"checkpoint-{step}"
            kill_when(checkpoint.exists, [*command, "--output_dir", str(folder)], root)
        done = subprocess.run(
            [*command, "--output_dir", str(folder)],
            cwd=root,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("adapter_model.safetensors", "value/adapter_model.safetensors"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()
    histories = []
    for folder in (straight, killed):
        log = read(folder / "trainer_state.json")["log_history"]
        histories.append([{**e, "eps": 0, "seconds": 0} for e in log if "loss/policy_avg" in e])
    assert histories[0] == histories[1]
    assert len(histories[0]) == 7


def test_an_evaluation_killed_again_and_again_ends_as_if_it_had_not_been(root, workspace, tmp_path):
    """SIGKILL in base, in the last policy and in the scores; the same command each time."""
    command = [
        *(sys.executable, "recipes/evaluate.py", "--config", "recipes/tiny/evaluate.yaml"),
        *("--dataset_name", f"{workspace}/data", "--batch_size", "2"),
        *("--reward_model_path", f"{workspace}/models/reward_model", "--models"),
        *(f"{name}={workspace}/models/{name}_model" for name in ("dpo", "ppo")),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for name in ("base", "ppo", "dpo.reward"):
        journal = killed / "samples" / "journal" / f"{name}.jsonl"
        kill_when(journal.exists, [*command, "--output_dir", str(killed)], root)
        assert not (killed / "samples" / "collection.json").exists()
    for folder in (straight, killed):
        subprocess.run(
            [*command, "--output_dir", str(folder)],
            cwd=root,
            env=environment,
            capture_output=True,
            check=True,
        )
    for name in ("base", "dpo", "ppo", "control"):
        file = f"samples/{name}_samples.json"
        assert (killed / file).read_bytes() == (straight / file).read_bytes()


def test_policies_of_one_start_are_evaluated_together_from_it(root, workspace, tmp_path):
    """PPO, GRPO and DPO start from one SFT adapter, and KL is measured from it."""
    start = ("--sft_model_path", f"{workspace}/models/sft_model")
    scores = ("--reward_model_path", f"{workspace}/models/reward_model")
    data = ("--dataset_name", f"{workspace}/data")
    for stage in POLICIES:
        given = start if stage == "dpo" else (*start, *scores)
        succeed(root, stage, "recipes/tiny", tmp_path, *data, *given)
    succeed(root, "evaluate", "recipes/tiny", tmp_path, *data, *start, *scores)
    evaluation = read(tmp_path / "results" / "evaluation_results.json")
    assert set(evaluation["models"]) == {"base", *POLICIES, "bare_base"}
    for name in ("base", *POLICIES, "bare_base"):
        divergences = [r["kl"] for r in read(tmp_path / "samples" / f"{name}_samples.json")]
        assert all(kl == 0 for kl in divergences) == (name == "base")
    assert evaluation["models"]["bare_base"]["win_rate"]["gold"]["n"] == 24
    text = (tmp_path / "ANALYSIS.md").read_text()
    assert f"`base` is the adapter in {workspace}/models/sft_model" in text
    done = launch(root, "evaluate", "recipes/tiny", tmp_path, *data, *scores, "--overwrite")
    assert done.returncode != 0  # 1: the launcher's
    assert "set `sft_model_path: " in done.stderr


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 of random weights and tiny size, with a tokenizer that has no chat template."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = open_tokenizer("tiny")
    tokenizer.chat_template = None
    tokenizer.pad_token = None  # as GPT-2's own
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=1024,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


HH_ROWS = [
    {
        "chosen": f"\n\nHuman: question {i}?\n\nAssistant: yes, {i} it is.",
        "rejected": f"\n\nHuman: question {i}?\n\nAssistant: no.",
    }
    for i in range(60)
]


def test_the_gpt2_recipes_run_on_raw_hh_files_and_a_base_without_a_template(root, gpt2, tmp_path):
    data = tmp_path / "hh"
    data.mkdir()
    rows = "\n".join(json.dumps(row) for row in HH_ROWS)
    (data / "train.jsonl").write_text(rows)
    recipe, out = "recipes/hh-rlhf/gpt2", tmp_path / "outputs"
    base = ("--model_name_or_path", str(gpt2))
    succeed(root, "prepare_data", recipe, out, *base, "--dataset_name", str(data))
    for stage in ("sft", "reward", *POLICIES):
        succeed(root, stage, recipe, out, *base, "--max_steps", "2")
    succeed(root, "evaluate", recipe, out)
    settings = yaml.safe_load((out / "models" / "ppo_model" / "recipe.yaml").read_text())
    assert settings["kl_coef"] == 0.05
    assert set(read(out / "results" / "evaluation_results.json")["models"]) == {"base", *POLICIES}
