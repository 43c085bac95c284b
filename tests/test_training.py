import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from rlhf_recipes.arguments import RecipeArguments, parse_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.runs.checkpoints import last_checkpoint
from rlhf_recipes.runs.resuming import train
from rlhf_recipes.training import Run


def config(folder, **changes) -> DPOConfig:
    return DPOConfig(output_dir=str(folder), bf16=False, activation_checkpointing=False, **changes)


def finish(folder) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"stage": "dpo"}))


def test_a_finished_run_folder_is_refused_and_left_alone(tmp_path):
    finish(tmp_path / "run")
    with pytest.raises(RecipeError, match="already contains a finished run"):
        Run("dpo", RecipeArguments(), config(tmp_path / "run"))
    assert (tmp_path / "run" / "run.json").exists()


def test_overwrite_removes_nothing_before_the_new_run_has_finished(tmp_path):
    finish(tmp_path / "run")
    training = config(tmp_path / "run")
    run = Run("dpo", RecipeArguments(overwrite=True), training)
    assert (tmp_path / "run" / "run.json").exists()
    assert training.output_dir == str(run.folder.path) != str(tmp_path / "run")
    (tmp_path / "killed" / "checkpoint-1").mkdir(parents=True)
    Run("dpo", RecipeArguments(overwrite=True), config(tmp_path / "killed"))
    assert (tmp_path / "killed" / "checkpoint-1").exists()


def test_the_trainer_does_not_push_and_the_recipe_still_says_so(tmp_path):
    training = config(tmp_path, push_to_hub=True)
    run = Run("dpo", RecipeArguments(), training)
    assert run.pushes
    assert not training.push_to_hub
    assert run.resolved["push_to_hub"] is True


PAIR = {"prompt": "say", "chosen": " yes", "rejected": " no"}


def small_run(folder, **changes):
    """A run of DPO's trainer on four pairs, and the trainer, ready to be started."""
    settings = {
        "output_dir": folder,
        "bf16": "false",
        "activation_checkpointing": "false",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": "true",
        **changes,
    }
    argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    recipe, training = parse_recipe(RecipeArguments, DPOConfig, argv=argv)
    run = Run("dpo", recipe, training)
    trainer = DPOTrainer(
        model=open_base("tiny"),
        args=training,
        train_dataset=Dataset.from_list(
            [{"prompt": "say", "chosen": " yes", "rejected": " no"}] * 4
        ),
        processing_class=open_tokenizer("tiny"),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    return run, trainer


def test_a_run_that_was_killed_after_its_last_step_trains_no_further(tmp_path):
    _, straight = small_run(tmp_path / "run")
    whole = train(straight, None)
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    _, resumed = small_run(tmp_path / "run")
    rest = train(resumed, checkpoint)
    assert all(rest[name] == whole[name] for name in ("train_loss", "num_tokens"))
    assert resumed.state.global_step == resumed.state.max_steps == 4
    assert resumed.state.log_history[-1]["step"] == 4
    wanted, found = (dict(t.model.named_parameters()) for t in (straight, resumed))
    assert any(p.any() for name, p in found.items() if "lora_B" in name)
    for name, parameter in wanted.items():
        assert torch.equal(parameter, found[name]), name


def test_checkpoints_of_another_recipe_are_refused(tmp_path):
    run, trainer = small_run(tmp_path, learning_rate=1e-3)
    trainer.add_callback(KilledAfterOneStep())
    with pytest.raises(KeyboardInterrupt):
        run.train_and_save(trainer)
    small_run(tmp_path, learning_rate=1e-3, logging_steps=7)
    with pytest.raises(RecipeError, match=r"- `learning_rate`: 0.001 there, 0.002 now"):
        small_run(tmp_path, learning_rate=2e-3)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def cut_off_in_place(run):
    """Leave a finished run as if it had been killed while it was put in another's place."""
    shutil.copytree(run, run.parent / "copy")
    (run.parent / "copy").rename(run / REPLACEMENT)
    (run / "run.json").unlink()


def test_a_run_cut_off_while_it_is_put_in_place_ends_there_for_its_own_settings_alone(tmp_path):
    folder = tmp_path / "run"
    run, trainer = small_run(folder, learning_rate=1e-3)
    run.train_and_save(trainer)
    cut_off_in_place(folder)
    with pytest.raises(SystemExit) as ended:
        small_run(folder, learning_rate=1e-3)
    assert ended.value.code == 0 and (folder / "run.json").exists()
    cut_off_in_place(folder)
    with pytest.raises(RecipeError, match="run already contains a finished run"):
        small_run(folder, learning_rate=2e-3)
    assert (folder / "run.json").exists() and not (folder / REPLACEMENT).exists()
    cut_off_in_place(folder)
    run, _ = small_run(folder, learning_rate=2e-3, overwrite="true")
    assert (folder / "run.json").exists() and run.folder.replaces


def test_checkpoints_of_another_number_of_processes_are_refused(tmp_path):
    run, trainer = small_run(tmp_path)
    trainer.add_callback(KilledAfterOneStep())
    with pytest.raises(KeyboardInterrupt):
        run.train_and_save(trainer)
    noted = json.loads((tmp_path / "inputs.json").read_text())
    assert noted["processes"] == "1"
    (tmp_path / "inputs.json").write_text(json.dumps(noted | {"processes": "2"}))
    with pytest.raises(RecipeError, match="- number of processes: 2 there, 1 now"):
        small_run(tmp_path)
    (tmp_path / "inputs.json").write_text("{}")  # of a version that did not note it
    small_run(tmp_path)


class KilledAfterOneStep(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 1:
            raise KeyboardInterrupt
