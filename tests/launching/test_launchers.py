"""Each stage under each launcher, on two processes that shard as its configuration says."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from peft import PeftModel
from safetensors.torch import load_file

from rlhf_recipes.models.loading import open_base
from tests.ppo.conftest import random_reward_model

pytestmark = pytest.mark.slow

DEEPSPEED = pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed")
LAUNCHERS = ("cpu_ddp", "fsdp2", *(pytest.param(f"zero{n}", marks=DEEPSPEED) for n in (2, 3)))
LN_2 = math.log(2)


@pytest.fixture(scope="module")
def inputs(root, tmp_path_factory):
    """The prepared data of recipes/tiny, and a reward model on its base."""
    folder = tmp_path_factory.mktemp("inputs")
    command = [sys.executable, "recipes/prepare_data.py", "--config"]
    command += ["recipes/tiny/prepare_data.yaml", "--output_dir", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    return str(folder / "data"), random_reward_model(folder / "reward")


def run_stages(root, out, inputs, launcher=()):
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.launching.stages", str(out), *inputs],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def alone(root, inputs, tmp_path_factory):
    """The same stages on the same batches, in one process."""
    folder = tmp_path_factory.mktemp("alone")
    run_stages(root, folder, inputs)
    return folder


@pytest.fixture(scope="module", params=LAUNCHERS)
def launched(root, inputs, tmp_path_factory, request):
    """The stages on two processes under a launcher's configuration."""
    folder = tmp_path_factory.mktemp(request.param)
    options = ("--config_file", f"accelerate_configs/{request.param}.yaml", "--num_processes", "2")
    launch = ("-m", "accelerate.commands.launch", "--quiet", *options)
    done = run_stages(root, folder, inputs, launch)
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def first_log(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"][0]


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_two_processes_train_the_adapter_that_one_trains(alone, launched, stage):
    """Shards are gathered whole, and gradients are averaged."""
    expected = adapter(alone / stage)
    trained = adapter(launched / stage)
    assert {name: t.shape for name, t in trained.items()} == {
        name: t.shape for name, t in expected.items()
    }
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-4, atol=1e-6, msg=name)
    assert any(weight.any() for name, weight in trained.items() if "lora_B" in name)


@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_plain_peft_loads_the_adapter_that_two_processes_saved(launched, stage):
    """All warnings are errors here, and PEFT warns of weights that are missing."""
    model = PeftModel.from_pretrained(open_base("tiny"), launched / stage)
    weights = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora" in n}
    saved = adapter(launched / stage)
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items())


def test_a_resumed_run_of_two_processes_ends_bit_for_bit_as_the_straight_one(launched):
    """With AdamW's moments, and a last batch that has rows for one process only."""
    straight, resumed = adapter(launched / "dpo_adamw"), adapter(launched / "dpo_adamw_resumed")
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())


def test_the_policy_starts_as_the_reference(launched):
    """Before the first step DPO's loss is ln 2 in any precision, and GRPO's KL is 0."""
    assert first_log(launched / "dpo")["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert first_log(launched / "dpo_bf16")["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert first_log(launched / "grpo")["kl"] == pytest.approx(0, abs=1e-6)


def test_ppo_and_the_own_sampler_run_where_weights_are_whole(launched):
    trl_samples = "TRL's own sampler is used" in (launched / "log").read_text()
    if launched.name.startswith("cpu_ddp"):
        assert first_log(launched / "ppo")["val/ratio"] == pytest.approx(1, abs=1e-5)
        assert not trl_samples
    else:
        assert "PPO does not run under DeepSpeed or FSDP" in (launched / "refused").read_text()
        assert trl_samples


@pytest.fixture(scope="module")
def lower(launched):
    """The stages on bases in lower precision, by two processes."""
    if launched.name.startswith("zero"):
        pytest.skip("DeepSpeed trains a copy of its own, and is not run on such bases")
    return launched


def check_adapters_are_float32(folder):
    files = [*folder.glob("*_bf16_base/**/adapter_model.safetensors")]
    files += folder.glob("*_qlora/**/adapter_model.safetensors")
    stages = {path.relative_to(folder).parts[0].split("_")[0] for path in files}
    assert stages >= {"reward", "dpo"}
    for path in files:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}, path
    return stages


def check_starts(folder, precision, stages):
    """Before the first step DPO's loss is ln 2, KL is 0 and PPO's ratio is 1."""
    assert first_log(folder / f"dpo_{precision}")["loss"] == pytest.approx(LN_2, abs=1e-6)
    if "grpo" in stages:
        assert first_log(folder / f"grpo_{precision}")["kl"] == pytest.approx(0, abs=1e-6)
        ppo = first_log(folder / f"ppo_{precision}")
        assert ppo["objective/kl"] == pytest.approx(0, abs=1e-6)
        assert ppo["val/ratio"] == pytest.approx(1, abs=5e-3)


def test_on_lower_bases_one_process_starts_as_the_reference_and_saves_float32(alone):
    stages = check_adapters_are_float32(alone)
    assert stages == {"reward", "dpo", "grpo", "ppo"}
    for precision in ("bf16", "bf16_base", "qlora"):
        check_starts(alone, precision, stages)


def test_on_lower_bases_two_processes_start_as_the_reference_and_save_float32(lower):
    stages = check_adapters_are_float32(lower)
    assert ("ppo" in stages) == lower.name.startswith("cpu_ddp")
    for precision in ("bf16_base", "qlora"):
        check_starts(lower, precision, stages)
