"""The Makefile, run by make itself, with stages that only write their records."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

STAGE = """#!{python}
import json, os, sys, time
from pathlib import Path
arguments = sys.argv[1:]
if "rlhf_recipes.runs.completeness" in arguments:
    os.execv({python!r}, [{python!r}, *arguments])
folder = Path(arguments[arguments.index("--output_dir") + 1])
stage = Path(arguments[0]).stem
with open(os.environ["STAGES_LOG"], "a") as log:
    log.write(json.dumps([stage, *arguments]) + "\\n")
record = {{"dataset_fingerprint": "d1"}}
if stage == "prepare_data":
    files = {{"data/run.json": record}}
elif stage == "evaluate":
    names = "failure_analysis.json report.html evaluation_results.json".split()
    files = {{f"results/{{name}}": {{}} for name in names}} | {{"ANALYSIS.md": {{}}}}
    facts = {{"dataset_fingerprint": "d1", "reward_model_fingerprint": "reward", "models": {{}}}}
    for name in ("ppo", "grpo", "dpo"):
        own = str(folder / "models" / f"{{name}}_model")
        facts["models"][name] = {{"adapter": own, "fingerprint": name}}
    if "--sft_model_path" in arguments:
        facts["reference"] = arguments[arguments.index("--sft_model_path") + 1]
        facts["models"]["base"] = {{"fingerprint": "sft"}}
    files["samples/collection.json"] = facts
else:
    model = str(folder.parent / "reward_model")
    record |= {{"fingerprint": stage, "recipe": {{"reward_model_path": model}}}}
    if "--sft_model_path" in arguments:
        start = arguments[arguments.index("--sft_model_path") + 1]
        record["recipe"]["sft_model_path"] = start
    files = {{"run.json": record}}
    if stage in ("ppo", "grpo"):
        files["run.json"]["inputs"] = {{"reward_model_path": "reward"}}
    if "sft_model_path" in record["recipe"]:
        files["run.json"].setdefault("inputs", {{}})["sft_model_path"] = "sft"
for name, content in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
if os.environ.get("HANG_IN") == stage:
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def make(root, tmp_path):
    """A function that starts make with these arguments, and the log of what stages it ran."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "python").write_text(STAGE.format(python=sys.executable))
    (binaries / "python").chmod(0o755)
    (binaries / ".installed").touch()

    def start(*arguments, **environment):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        process = subprocess.Popen(
            [
                *("make", f"BIN={binaries}", f"INSTALLED={binaries}/.installed"),
                *(f"OUT={tmp_path}/out", *arguments),
            ],
            cwd=root,
            env=os.environ | {"STAGES_LOG": str(log)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return process, log

    return start


def finish(started):
    """The status of make, all it said, and the stages it ran."""
    process, log = started
    out, err = process.communicate(timeout=60)
    lines = log.read_text().splitlines() if log.exists() else []
    return process.returncode, out + err, [json.loads(line)[0] for line in lines]


ALL = ["prepare_data", "reward", "ppo", "grpo", "dpo", "evaluate"]


def test_every_stage_runs_once_and_all_is_then_complete(make, tmp_path):
    status, said, stages = finish(make("all"))
    assert (status, stages) == (0, ALL), said
    assert f"{tmp_path}/out is complete" in said
    assert finish(make("all"))[2] == []


STARTED = ["prepare_data", "reward", "sft", "ppo", "grpo", "dpo", "evaluate"]


def test_with_an_sft_adapter_it_is_trained_first_and_everything_starts_from_it(make, tmp_path):
    started = make("all", "SFT=1")
    status, said, stages = finish(started)
    assert status == 0, said
    assert sorted(stages) == sorted(STARTED)
    assert stages.index("sft") < min(stages.index(policy) for policy in ("ppo", "grpo", "dpo"))
    for line in started[1].read_text().splitlines():
        stage, *arguments = json.loads(line)
        begins = "--sft_model_path" in arguments
        assert begins == (stage in ("ppo", "grpo", "dpo", "evaluate")), stage
        if begins:
            folder = arguments[arguments.index("--sft_model_path") + 1]
            assert folder == f"{tmp_path}/out/models/sft_model"
    assert finish(make("all"))[2] == []  # the folder says that there is one


def test_policies_start_from_an_sft_adapter_that_is_there(make):
    assert finish(make("sft"))[2] == ["prepare_data", "sft"]
    started = make("dpo")
    assert finish(started)[2] == ["dpo"]
    assert "--sft_model_path" in started[1].read_text()


def test_one_call_may_make_the_sft_adapter_and_a_policy_from_it(make):
    started = make("sft", "dpo")
    assert finish(started)[2] == ["prepare_data", "sft", "dpo"]
    assert "--sft_model_path" in started[1].read_text().splitlines()[-1]


def test_policies_of_another_start_are_noticed(make, tmp_path):
    finish(make("all"))
    status, said, stages = finish(make("all", "SFT=1"))
    assert (status, stages) == (2, ["sft"])
    assert "ppo was trained from the base, and" in said
    assert "make ppo ARGS_ppo=--overwrite" in said and "complete:" not in said


def test_an_sft_adapter_that_was_trained_again_is_noticed(make, tmp_path):
    finish(make("all", "SFT=1"))
    record = tmp_path / "out" / "models" / "sft_model" / "run.json"
    changed = {"fingerprint": "new"}
    record.write_text(json.dumps(json.loads(record.read_text()) | changed))
    status, said, _ = finish(make("all"))
    assert status == 2
    for stage in ("ppo", "grpo", "dpo"):
        assert f"{stage} was trained from another SFT adapter" in said
    assert "The evaluation was made with another sft adapter than" in said


def test_sft_has_one_value(make):
    status, said, stages = finish(make("all", "SFT=0"))
    assert (status, stages) == (2, [])
    assert "SFT is `0`: give SFT=1" in said


def test_control_c_deletes_no_finished_record(make, tmp_path):
    process, log = make("reward", HANG_IN="reward")
    assert process.stdout is not None
    assert any("written" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    status, _, stages = finish((process, log))
    assert status != 0
    assert stages == ["prepare_data", "reward"]
    assert (tmp_path / "out" / "models" / "reward_model" / "run.json").exists()
    assert finish(make("reward"))[2] == []


def test_a_copied_folder_or_a_touched_file_is_no_reason_to_run_a_stage(make, tmp_path):
    finish(make("all"))
    out = tmp_path / "out"
    os.utime(out / "data" / "run.json")
    status, said, stages = finish(make("all"))
    assert (status, stages) == (0, []), said
    shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copy)
    status, said, stages = finish(make("all", f"OUT={tmp_path}/copy"))
    assert (status, stages) == (0, []), said


def test_data_prepared_anew_is_noticed_by_its_fingerprint(make, tmp_path):
    finish(make("all"))
    (tmp_path / "out" / "data" / "run.json").write_text('{"dataset_fingerprint": "d2"}')
    for target in ("all", "dpo"):
        status, said, stages = finish(make(target))
        assert status == 2
        assert stages == []
        assert "dpo was trained on other data than" in said
        assert "make dpo ARGS_dpo=--overwrite" in said
        assert "complete:" not in said


def test_a_policy_of_another_reward_model_and_an_old_evaluation_are_noticed(make, tmp_path):
    finish(make("all"))
    record = tmp_path / "out" / "models" / "reward_model" / "run.json"
    changed = {"fingerprint": "new"}
    record.write_text(json.dumps(json.loads(record.read_text()) | changed))
    status, said, _ = finish(make("all"))
    assert status == 2
    assert "ppo was trained against another reward model" in said
    assert "The evaluation was made with another reward adapter than" in said
    assert "dpo was" not in said


def test_an_evaluation_of_another_policy_is_noticed_by_its_fingerprint(make, tmp_path):
    finish(make("all"))
    record = tmp_path / "out" / "models" / "dpo_model" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": "new"}))
    status, said, _ = finish(make("all"))
    assert status == 2
    assert "The evaluation was made with another dpo adapter than" in said


def test_records_of_a_version_without_fingerprints_are_not_called_stale(make, tmp_path):
    finish(make("all"))
    for record in (tmp_path / "out" / "models").glob("*/run.json"):
        kept = json.loads(record.read_text())
        del kept["fingerprint"]
        record.write_text(json.dumps(kept))
    status, said, stages = finish(make("all"))
    assert (status, stages) == (0, []), said


def test_a_judge_of_pairs_that_are_not_its_own_any_more_is_noticed(make, tmp_path):
    finish(make("all"))
    judge = tmp_path / "out" / "judge"
    for folder, fingerprint in (("data", "j1"), ("models/reward_model", "j1")):
        (judge / folder).mkdir(parents=True)
        record = json.dumps({"dataset_fingerprint": fingerprint})
        (judge / folder / "run.json").write_text(record)
    assert finish(make("all"))[0] == 0
    (judge / "data" / "run.json").unlink()
    status, said, _ = finish(make("all"))
    assert status == 2
    assert "The judge was trained on other pairs than" in said


def test_without_its_report_nothing_is_called_complete(make, tmp_path):
    finish(make("all"))
    (tmp_path / "out" / "results" / "report.html").unlink()
    status, said, _ = finish(make("all"))
    assert status == 2
    assert "results/report.html cannot be found" in said
    assert "is complete" not in said


def test_overwrite_runs_the_stage_it_is_given_to(make):
    finish(make("all"))
    assert finish(make("ppo", "ARGS_ppo=--overwrite"))[2] == ["ppo"]
    assert finish(make("reward", "ARGS=--overwrite"))[2] == ["prepare_data", "reward"]


def flags_of(started):
    """What each stage was given, by its script."""
    assert finish(started)[0] == 0
    lines = map(json.loads, started[1].read_text().splitlines())
    return {stage: arguments for stage, *arguments in lines}


def test_a_stage_on_the_way_takes_of_args_what_it_knows_and_the_named_one_all(make):
    given = flags_of(make("ppo", "ARGS=--kl_coef 0.1 --x 'a b'", "ARGS_ppo=--seed 2"))
    assert list(given) == ["prepare_data", "reward", "ppo"]
    assert given["ppo"][-6:] == ["--kl_coef", "0.1", "--x", "a b", "--seed", "2"]
    for stage in ("prepare_data", "reward"):
        assert given[stage][-1] == "--if_known=--kl_coef 0.1 --x 'a b'"


def test_in_all_every_stage_takes_of_args_what_it_knows(make):
    given = flags_of(make("all", "ARGS=--kl_coef 0.1", "ARGS_dpo=--beta 1"))
    assert list(given) == ALL
    for stage, arguments in given.items():
        assert "--if_known=--kl_coef 0.1" in arguments
        assert "--kl_coef" not in arguments
        assert (arguments[-2:] == ["--beta", "1"]) == (stage == "dpo")


def test_without_args_no_stage_is_given_any(make):
    given = flags_of(make("all"))
    assert not [a for arguments in given.values() for a in arguments if "if_known" in a]


@pytest.mark.parametrize("name", ["OUT", "RECIPE", "ACCELERATE", "JUDGE"])
@pytest.mark.parametrize("value", ["my folder", "a$b", "a;b", "it's", "50%"])
def test_names_that_make_cannot_work_with_are_refused(make, name, value):
    status, said, stages = finish(make("all", f"{name}={value}"))
    assert status == 2
    assert f"{name} is `{value}`" in said
    assert stages == []


def test_a_dataset_and_a_model_may_have_spaces_in_their_names(make):
    started = make("data", "DATASET=my pairs/it's.jsonl", "MODEL=my base")
    assert finish(started)[0] == 0
    (line,) = started[1].read_text().splitlines()
    assert "my pairs/it's.jsonl" in json.loads(line)
    assert "my base" in json.loads(line)
    status, said, _ = finish(make("data", "DATASET=a$b"))
    assert status == 2
    assert "DATASET is `a$b`" in said


def test_every_stage_with_models_is_started_by_the_launcher(root, tmp_path):
    launcher = "ACCELERATE=accelerate_configs/multi_gpu.yaml"
    command = ["make", "--dry-run", "all", f"OUT={tmp_path / 'out'}", launcher]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    stages = [line.split() for line in done.stdout.splitlines() if " recipes/" in line]
    launched = [line for line in stages if "rlhf_recipes.launch" in line]
    scripts = [[w for w in line if w.endswith(".py")] for line in launched]
    assert sorted(scripts) == [
        [f"recipes/{s}.py"] for s in ("dpo", "evaluate", "grpo", "ppo", "reward")
    ]
    assert len(stages) == 6
