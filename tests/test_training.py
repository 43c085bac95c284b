import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, ModelConfig

from rlhf_recipes.arguments import RecipeArguments, parse_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.runs.checkpoints import last_checkpoint
from rlhf_recipes.runs.resuming import train
from rlhf_recipes.training import check_run_folder, push_if_asked, train_and_save

PAIR = {"prompt": "say", "chosen": " yes", "rejected": " no"}


def small_inputs(folder, **changes) -> Inputs:
    """What a recipe of DPO on four pairs gives."""
    settings = {
        "model_name_or_path": "tiny",
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
    types = (RecipeArguments, DPOConfig, ModelConfig)
    (recipe, training, model), given = parse_recipe(*types, argv=argv)
    pairs = Dataset.from_list([PAIR] * 4)
    dataset = {"train": pairs, "validation": pairs}
    return Inputs("dpo", recipe, training, model, dataset, settings=given)


def small_run(folder, **changes):
    """A checked run of DPO on four pairs, and its trainer, ready to be started."""
    inputs = small_inputs(folder, **changes)
    run = check_run_folder(inputs)
    inputs.training.output_dir = run.output_dir
    trainer = DPOTrainer(
        model=open_base("tiny"),
        args=inputs.training,
        train_dataset=inputs.dataset["train"],
        processing_class=open_tokenizer("tiny"),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    return run, trainer


def finish(folder) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"stage": "dpo"}))


def test_a_finished_run_folder_is_refused_and_left_alone(tmp_path):
    finish(tmp_path / "run")
    with pytest.raises(RecipeError, match="already contains a finished run"):
        check_run_folder(small_inputs(tmp_path / "run"))
    assert (tmp_path / "run" / "run.json").exists()


def test_overwrite_removes_nothing_before_the_new_run_has_finished(tmp_path):
    finish(tmp_path / "run")
    run = check_run_folder(small_inputs(tmp_path / "run", overwrite="true"))
    assert (tmp_path / "run" / "run.json").exists()
    assert run.output_dir == str(run.folder.path) != str(tmp_path / "run")
    (tmp_path / "killed" / "checkpoint-1").mkdir(parents=True)
    check_run_folder(small_inputs(tmp_path / "killed", overwrite="true"))
    assert (tmp_path / "killed" / "checkpoint-1").exists()


def test_checking_a_run_s_folder_changes_nothing_of_its_arguments(tmp_path):
    inputs = small_inputs(tmp_path, push_to_hub="true", save_total_limit=1)
    before = dict(vars(inputs.training))
    run = check_run_folder(inputs)
    assert vars(inputs.training) == before
    inputs.training.push_to_hub = False
    assert run.push_to_hub
    assert run.recipe["push_to_hub"] is True


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_is_pushed_where_its_recipe_says_so(tmp_path, monkeypatch, asked):
    pushed = []
    monkeypatch.setattr("rlhf_recipes.training.push", lambda *given: pushed.append(given))
    inputs = small_inputs(tmp_path / "dpo_model", **({"push_to_hub": "true"} if asked else {}))
    push_if_asked(check_run_folder(inputs), inputs.training)
    assert pushed == ([(tmp_path / "dpo_model", "dpo", True, None)] if asked else [])


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
        train_and_save(trainer, run)
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
    train_and_save(trainer, run)
    cut_off_in_place(folder)
    assert check_run_folder(small_inputs(folder, learning_rate=1e-3)) is None
    assert (folder / "run.json").exists()
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
        train_and_save(trainer, run)
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
