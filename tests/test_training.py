import json

import pytest
import torch
from trl import DPOConfig

from rlhf_recipes.arguments import RecipeArguments, RecipeError
from rlhf_recipes.training import Run, last_checkpoint, use_all_cores


def config(folder, **changes) -> DPOConfig:
    return DPOConfig(output_dir=str(folder), bf16=False, activation_checkpointing=False, **changes)


def finish(folder) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"stage": "dpo"}))


def test_a_finished_run_folder_is_refused_and_left_alone(tmp_path):
    finish(tmp_path / "run")
    with pytest.raises(RecipeError, match="holds a finished run"):
        Run("dpo", RecipeArguments(), config(tmp_path / "run"))
    assert (tmp_path / "run" / "run.json").exists()


def test_overwrite_removes_a_finished_run_and_nothing_unfinished(tmp_path):
    finish(tmp_path / "run")
    Run("dpo", RecipeArguments(overwrite=True), config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "killed" / "checkpoint-1").mkdir(parents=True)
    Run("dpo", RecipeArguments(overwrite=True), config(tmp_path / "killed"))
    assert (tmp_path / "killed" / "checkpoint-1").exists()


def test_the_trainer_does_not_push_and_the_recipe_still_says_so(tmp_path):
    training = config(tmp_path, push_to_hub=True)
    run = Run("dpo", RecipeArguments(), training)
    assert run.pushes
    assert not training.push_to_hub
    assert run.resolved["push_to_hub"] is True


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (8, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    training = config(tmp_path)
    assert training.world_size == 1
    with pytest.raises(RecipeError, match="2 processes were started, and this one sees 1"):
        Run("dpo", RecipeArguments(), training)


@pytest.mark.skipif(torch.cuda.is_available(), reason="threads are a CPU's concern")
def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    before = torch.get_num_threads()
    try:
        for processes, threads in (("1", 6), ("2", 3), ("8", 1)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
            use_all_cores()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
