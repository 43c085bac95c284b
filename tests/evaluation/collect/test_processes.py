"""An evaluation by two real processes leaves the files of one process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from huggingface_hub import constants

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.analysis import analyze
from rlhf_recipes.evaluation.collect import collection as collecting
from rlhf_recipes.evaluation.collect import processes
from rlhf_recipes.evaluation.collect.provenance import read_adapters
from tests.evaluation.chat_server import ChatServer

MODELS = ("base", "ppo", "control")
WAIT = 200
"""Seconds, for a machine that other work slows down; a test takes about ten."""

RULES = """
import os, pathlib, signal, time

here = pathlib.Path(__file__).parent

def counted(prompts, completions):
    with open(here / "calls", "a") as file:
        file.write("".join(f"{len(text)}\\n" for text in completions))
    return [len(text) for text in completions]

def fails(prompts, completions):
    (here / f"scoring-{os.environ['RANK']}").touch()
    if os.environ["RANK"] == "1" and os.environ["FAIL"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "1" and os.environ["FAIL"] == "raises":
        return []
    if os.environ["FAIL"] == "waits":
        time.sleep(600)
    return [len(text) for text in completions]
"""


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


@pytest.fixture
def alone(arguments, tmp_path):
    """Evaluate in this process, with one thread as each launched process has."""

    def evaluate(**changes):
        given = arguments(**{"output_dir": str(tmp_path / "alone"), **changes})
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            collecting.collect(given, read_adapters(given))
        finally:
            torch.set_num_threads(threads)
        analyze(given.output_dir)
        return tmp_path / "alone"

    return evaluate


@pytest.fixture
def start(root, arguments, tmp_path):
    """Start recipes/evaluate.py on two processes; its output goes to pipes."""

    def launch(launcher="cpu_ddp", environment=None, **changes):
        given = arguments(**{"output_dir": str(tmp_path / "two"), **changes})
        settings = {k: v for k, v in vars(given).items() if v is not None and k != "plan"}
        (tmp_path / "evaluate.yaml").write_text(json.dumps(settings))
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "rlhf_recipes.launch", "--quiet", "--num_processes", "2"),
                *("--config_file", f"accelerate_configs/{launcher}.yaml"),
                *("recipes/evaluate.py", "--config", str(tmp_path / "evaluate.yaml")),
            ],
            cwd=root,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return launch


def files(folder):
    """The bytes of all samples and verdicts."""
    names = [f"{name}_samples.json" for name in MODELS]
    names += [path.name for path in (folder / "samples").glob("verdicts_*")]
    return {name: (folder / "samples" / name).read_bytes() for name in names}


def journals(folder):
    """The entries of all journals, without the time that they took."""
    found = {}
    for path in (folder / "samples" / "journal").glob("*.jsonl"):
        _, *lines = path.read_text().splitlines()
        found[path.name] = [json.loads(line) | {"seconds": 0} for line in lines]
    return found


def results(folder):
    """The results, without the record of the run and the folder that they are in."""
    found = json.loads((folder / "results" / "evaluation_results.json").read_text())
    return {key: found[key] for key in found.keys() - {"run", "report"}}


def succeed(process):
    stdout, stderr = process.communicate(timeout=WAIT)
    assert process.returncode == 0, stderr[-3000:]
    return stdout, stderr


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one_and_ask_each_judge_once(
    alone, start, rules, tmp_path, monkeypatch
):
    """Five prompts make three batches of two, so that the last turn has one for one process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = ChatServer(lambda prompt, a, b: "A")
    changes = {
        "eval_prompts": 5,
        "judges": [f"counted={rules}:counted", f"chat={server.url}#m"],
    }
    try:
        expected = alone(**changes)
        calls, asked = (tmp_path / "calls").read_text(), len(server.requests)
        (tmp_path / "calls").unlink()
        stdout, _ = succeed(start(environment={"HF_HUB_OFFLINE": "0"}, **changes))
    finally:
        server.close()
    assert files(tmp_path / "two") == files(expected)
    assert results(tmp_path / "two") == results(expected)
    entries, own = journals(tmp_path / "two"), journals(expected)
    assert {name: entries[name] for name in entries if "verdicts" not in name} == {
        name: own[name] for name in own if "verdicts" not in name
    }
    assert len(calls.split()) == 5 * 2 * 3
    assert sorted((tmp_path / "calls").read_text().split()) == sorted(calls.split())
    assert len(server.requests) - asked == asked == 5 * 2 * 2 * 2
    assert stdout.count("Report: ") == 1
    facts = json.loads((tmp_path / "two" / "samples" / "collection.json").read_text())
    assert facts["hardware"]["processes"] == 2


@pytest.mark.slow
def test_what_one_process_began_two_end_with_the_same_bytes_unsharded(alone, start, tmp_path):
    """Under fsdp2.yaml each process holds a whole model."""
    expected = alone(eval_prompts=5)
    begun = tmp_path / "two" / "samples" / "journal"
    begun.mkdir(parents=True)
    for name in ("base", "ppo"):
        lines = (expected / "samples" / "journal" / f"{name}.jsonl").read_text().splitlines(True)
        (begun / f"{name}.jsonl").write_text("".join(lines[:2]) + lines[2][:50])  # settings, batch
    kept = (begun / "base.jsonl").read_text().splitlines()[:2]
    succeed(start("fsdp2", eval_prompts=5))
    assert (begun / "base.jsonl").read_text().splitlines()[:2] == kept
    assert files(tmp_path / "two") == files(expected)


@pytest.mark.slow
@pytest.mark.skipif(not is_deepspeed_available(), reason="DeepSpeed is not installed")
def test_fewer_batches_than_processes_are_evaluated_unsharded(alone, start, tmp_path):
    """Under zero3.yaml each process holds a whole model, and the second one has nothing to do."""
    expected = alone(eval_prompts=2)
    succeed(start("zero3", eval_prompts=2))
    assert files(tmp_path / "two") == files(expected)


@pytest.mark.slow
@pytest.mark.parametrize("fail", ["killed", "raises"])
def test_a_process_that_fails_ends_all_and_its_samples_are_kept(
    alone, start, rules, tmp_path, fail
):
    process = start(environment={"FAIL": fail}, judges=[f"j={rules}:fails"])
    _, stderr = process.communicate(timeout=WAIT)
    assert process.returncode == {"killed": 128 + signal.SIGKILL, "raises": 2}[fail], stderr
    if fail == "raises":
        assert "The judge `j`" in stderr and "0 values for" in stderr
    assert not (tmp_path / "two" / "samples" / "collection.json").exists()
    assert len((tmp_path / "two/samples/journal/control.jsonl").read_text().splitlines()) == 5
    expected = files(alone())
    assert files(alone(output_dir=str(tmp_path / "two"))) is not None
    assert files(tmp_path / "two") == expected


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(start, rules, tmp_path):
    process = start(environment={"FAIL": "waits"}, judges=[f"j={rules}:fails"])
    begun = [tmp_path / f"scoring-{rank}" for rank in range(2)]
    until = time.monotonic() + WAIT
    while not all(path.exists() for path in begun) and time.monotonic() < until:
        time.sleep(0.1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=WAIT)  # the pipes close when the last process ends
    assert process.returncode == 130
    assert "Interrupted. Finished work is kept" in stderr and "Traceback" not in stderr


def test_processes_with_other_inputs_are_refused(monkeypatch):
    """As on two machines whose folders differ."""
    monkeypatch.setattr(processes, "gather_object", lambda facts: [*facts, {"base": {"a": 2}}])
    with pytest.raises(RecipeError, match="Process 1 has other inputs") as refused:
        processes.check_same({"base": {"a": 1}})
    assert "- `base.a`: 1 there, 2 now" in str(refused.value)
    monkeypatch.setattr(processes, "gather_object", lambda facts: [*facts, *facts])
    processes.check_same({"base": {"a": 1}})


def test_processes_that_are_not_connected_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes were started, but the world size"):
        processes.connect_processes()
