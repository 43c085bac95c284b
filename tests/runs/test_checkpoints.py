"""Only a whole checkpoint is gone on from, whichever of its files is damaged, and however."""

import logging
import shutil

import pytest
from transformers import TrainerCallback

from rlhf_recipes.runs.checkpoints import MANIFEST, WholeCheckpoints, last_checkpoint
from rlhf_recipes.training import train_and_save
from tests.ppo.conftest import make_trainer, random_reward_model
from tests.test_training import small_run

TRAINERS_FILES = {
    *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
}
PPOS_FILES = {"ppo_state_0.pt", "value/adapter_config.json", "value/adapter_model.safetensors"}


class KilledBefore(TrainerCallback):
    """As a lost machine does: the step that it names is not begun."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step - 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def dpo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    _, trainer = small_run(folder, max_steps=2)
    trainer.add_callback(WholeCheckpoints())
    trainer.train()
    return folder


@pytest.fixture(scope="module")
def ppo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    reward_folder = random_reward_model(tmp_path_factory.mktemp("reward"))
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(folder, reward_folder, **settings)
    trainer.add_callback(WholeCheckpoints())
    trainer.train()
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), cut, flip_a_bit])
@pytest.mark.parametrize(
    ("stage", "needed"),
    [("dpo_folder", TRAINERS_FILES), ("ppo_folder", TRAINERS_FILES | PPOS_FILES)],
)
def test_damage_to_any_file_of_the_last_checkpoint_leads_to_the_one_before(
    stage, needed, damage, request, caplog
):
    folder = request.getfixturevalue(stage)
    newest = folder / "checkpoint-2"
    files = {str(p.relative_to(newest)): p for p in newest.rglob("*") if p.is_file()}
    del files[MANIFEST]
    assert needed < set(files)
    for path in files.values():
        assert last_checkpoint(folder) == str(newest)
        content = path.read_bytes()
        damage(path)
        caplog.clear()
        assert last_checkpoint(folder) == str(folder / "checkpoint-1")
        (sentence,) = caplog.messages
        assert path.name in sentence
        assert sentence.endswith(f"Training goes on from {folder / 'checkpoint-1'}.")
        path.write_bytes(content)


@pytest.mark.parametrize("length", [0, 300])
def test_a_cut_manifest_is_damage_too(length, dpo_folder, tmp_path, caplog):
    folder = shutil.copytree(dpo_folder, tmp_path / "run")
    manifest = folder / "checkpoint-2" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:length])
    assert last_checkpoint(folder) == str(folder / "checkpoint-1")
    assert f"{manifest} is damaged" in caplog.text


def test_with_no_whole_checkpoint_training_starts_over_and_says_so(tmp_path, dpo_folder, caplog):
    assert last_checkpoint(tmp_path / "none") is None
    assert not caplog.messages
    folder = shutil.copytree(dpo_folder, tmp_path / "run")
    (folder / "checkpoint-2" / "manifest.json").unlink()
    cut(folder / "checkpoint-1" / "optimizer.pt")
    assert last_checkpoint(folder) is None
    (sentence,) = caplog.messages
    assert "checkpoint-2 has no manifest.json: it was cut off while it was written." in sentence
    assert "checkpoint-1/optimizer.pt is damaged: it has" in sentence
    assert sentence.endswith("Training starts over.")


def test_a_checkpoint_of_weights_alone_is_none_to_go_on_from(tmp_path, caplog):
    _, trainer = small_run(tmp_path, max_steps=1, save_only_model="true")
    trainer.add_callback(WholeCheckpoints())
    trainer.train()
    assert last_checkpoint(tmp_path) is None
    assert "holds no optimizer state (`save_only_model`)" in caplog.text


def test_an_old_checkpoint_stays_until_the_next_one_is_whole(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **_):
            seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))

    _, trainer = small_run(tmp_path, max_steps=3, save_total_limit=1)
    whole = WholeCheckpoints()
    for callback in (Watch(), whole, Watch()):
        trainer.add_callback(callback)
    trainer.train()
    assert seen[2:] == [
        *(["checkpoint-1", "checkpoint-2"], ["checkpoint-2"]),
        *(["checkpoint-2", "checkpoint-3"], ["checkpoint-3"]),
    ]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    run, straight = small_run(tmp_path / "straight")
    train_and_save(straight, run)
    run, killed = small_run(tmp_path / "killed")
    killed.add_callback(KilledBefore(4))
    with pytest.raises(KeyboardInterrupt):
        train_and_save(killed, run)
    (tmp_path / "killed" / "checkpoint-3" / "optimizer.pt").unlink()
    run, resumed = small_run(tmp_path / "killed")
    assert run.checkpoint == str(tmp_path / "killed" / "checkpoint-2")
    train_and_save(resumed, run)
    adapters = [tmp_path / name / "adapter_model.safetensors" for name in ("straight", "killed")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
