"""One writer at a time, and a whole run at whatever moment a replacement is cut off."""

import json
import os
import signal
import subprocess
import sys

import pytest

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACED, REPLACEMENT, hold
from rlhf_recipes.models.fingerprints import model_fingerprint
from rlhf_recipes.runs.run_folder import FILES, RECORD, RunFolder, check_continuation, open_folder

HOLDER = """
import pathlib, sys, time
from rlhf_recipes.folders import hold
hold(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def start_holder(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    folder = tmp_path / "run"
    with start_holder(folder) as holder:
        with pytest.raises(RecipeError, match=rf"being written by process {holder.pid} on "):
            hold(folder)
        holder.kill()
    hold(folder)
    hold(folder)  # the same process may ask again


def test_a_second_run_is_refused_on_the_folder_of_a_living_one(tmp_path):
    with start_holder(tmp_path) as holder:
        with pytest.raises(RecipeError, match="two would mix their files"):
            open_folder(tmp_path)
        holder.send_signal(signal.SIGKILL)


OLD = {
    "adapter_config.json": "old",
    "adapter_model.safetensors": "old",
    "checkpoint-4/optimizer.pt": "old",
    "completions/step_1.parquet": "old",
    "value/adapter_config.json": "old",
    RECORD: "old",
}
NEW = {
    "adapter_config.json": "new",
    "adapter_model.safetensors": "new",
    "checkpoint-2/optimizer.pt": "new",
    "value/adapter_config.json": "new",
    "README.md": "new",
    RECORD: "new",
}
FOREIGN = {"notes.md": "mine", "figures/loss.svg": "mine", ".git/HEAD": "mine"}


def fill(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def holds(folder, files):
    return files.items() <= contents(folder).items()


class CutOff(BaseException):
    """Stands for SIGKILL: nothing here catches it."""


cuts: list[int] = []
"""How many changes of the file system are let through, while there is a number in it."""


def cut(event, _):
    if cuts and event in {"os.remove", "os.rename", "os.link", "os.mkdir", "os.rmdir"}:
        cuts[0] -= 1
        if cuts[0] < 0:
            raise CutOff


sys.addaudithook(cut)


def test_wherever_a_replacement_is_cut_off_a_run_is_whole_and_the_next_start_ends_it(tmp_path):
    moments = 0
    while True:
        folder = tmp_path / str(moments)
        fill(folder, OLD | FOREIGN)
        fill(folder / REPLACEMENT, NEW)
        hold(folder)
        try:
            cuts[:] = [moments]
            open_folder(folder)
        except CutOff:
            pass
        else:
            break
        finally:
            cuts.clear()
        assert holds(folder, FOREIGN)
        assert (
            (holds(folder, OLD) and (folder / RECORD).exists())
            or holds(folder / REPLACEMENT, NEW)
            or (contents(folder).items() >= NEW.items() and (folder / REPLACED).exists())
        )
        open_folder(folder)
        assert contents(folder) == NEW | FOREIGN, f"cut off at change {moments}"
        moments += 1
    assert contents(folder) == NEW | FOREIGN
    assert moments > 15


def test_a_run_writes_beside_a_finished_one_and_takes_its_place_at_the_end(tmp_path):
    fill(tmp_path, OLD | FOREIGN)
    run = RunFolder(tmp_path, overwrite=True)
    run.begin({"seed": 1}, {"dataset_name": "abc"})
    assert run.path == tmp_path / REPLACEMENT
    assert holds(tmp_path, OLD | FOREIGN)
    fill(run.path, {"adapter_config.json": "new"})
    run.finish({"stage": "dpo"})
    assert run.path == tmp_path
    assert contents(tmp_path).keys() == FOREIGN.keys() | {
        *("adapter_config.json", "inputs.json", "recipe.yaml", RECORD)
    }
    assert holds(tmp_path, FOREIGN | {"adapter_config.json": "new"})
    assert json.loads((tmp_path / RECORD).read_text()) == {"stage": "dpo"}


def test_a_finished_run_is_refused_without_overwrite_and_left_alone(tmp_path):
    fill(tmp_path, OLD)
    with pytest.raises(RecipeError, match="already contains a finished run"):
        RunFolder(tmp_path, overwrite=False)
    assert contents(tmp_path) == OLD


def test_inputs_are_compared_by_content_and_not_by_path(tmp_path):
    run = RunFolder(tmp_path / "run", overwrite=False)
    run.begin({"dataset_name": "here/data", "seed": 1}, {"dataset_name": "abc"})
    moved = {"dataset_name": "there/data", "seed": 1}
    check_continuation(run.path, moved, {"dataset_name": "abc"})
    with pytest.raises(RecipeError, match=r"- `dataset_name`: what here/data holds has changed"):
        check_continuation(
            run.path, {"dataset_name": "here/data", "seed": 1}, {"dataset_name": "x"}
        )
    with pytest.raises(RecipeError, match=r"- `seed`: 1 there, 2 now"):
        check_continuation(run.path, moved | {"seed": 2}, {"dataset_name": "abc"})


def test_a_model_is_known_by_what_its_outputs_depend_on(tmp_path):
    """The trainer's arguments name the folder that a run was written in."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "training_args.bin").write_bytes(b"run")
    known = model_fingerprint(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"run/.replacement")
    assert model_fingerprint(tmp_path) == known
    (tmp_path / "adapter_model.safetensors").write_bytes(b"others!")
    assert model_fingerprint(tmp_path) != known


def test_what_a_run_writes_has_no_pattern_that_takes_other_files():
    assert not {"*", "*.json", "*.md", "checkpoint-*"} & set(FILES)
    assert os.sep not in "".join(FILES)
