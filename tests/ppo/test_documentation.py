"""docs/ppo.md: its example runs, and it lists every key and every metric."""

import re
from dataclasses import fields
from pathlib import Path

from datasets import Dataset

from rlhf_recipes.models.loading import base_path
from rlhf_recipes.ppo.config import PPOConfig
from tests.ppo.conftest import make_trainer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ppo.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"(?m)^\| (`[^|]*`)", PAGE))


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    base = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base in example
    exec(example.replace(base, base_path("tiny")), {})
    assert (tmp_path / "outputs" / "brevity" / "adapter_model.safetensors").exists()


def test_every_key_is_listed_with_its_default():
    for field in fields(PPOConfig):
        if field.name in PPOConfig.__annotations__:
            (row,) = re.findall(rf"(?m)^\| `{field.name}` \| ([^|]*) \|", PAGE)
            stated = {"none": None, "true": True, "false": False, "k1": "k1", "1 each": None}
            value = stated[row] if row in stated else float(row.replace(",", ""))
            assert value == field.default, field.name


def test_every_metric_is_listed(tmp_path, reward_folder):
    def length(completions, **_):
        return [float(len(text)) for text in completions]

    ppo = make_trainer(
        tmp_path,
        reward_folder,
        reward_funcs=[length],
        eval_dataset=Dataset.from_dict({"prompt": ["tell me"]}),
        eval_strategy="steps",
        eval_steps=4,
    )
    ppo.train()
    ours = {"episode", "eps"}
    names = {name for entry in ppo.state.log_history for name in entry if "/" in name} | ours
    assert "eval_objective/scores" in names
    for name in {name.removeprefix("eval_") for name in names}:
        row = f"`{name}`" if not name.startswith("rewards/") else "`rewards/<function>`"
        assert row in LISTED, name
