"""Adapters, data and rules of a small evaluation."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig

from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.preferences import current_fingerprint
from rlhf_recipes.roles import Roles

PROMPTS = [f"question {'very ' * (i % 4)}long {i}{' ' * (i == 1)}" for i in range(10)]

RULES = """
def length(prompts, completions):
    return [len(text) for text in completions]

def too_few(prompts, completions):
    return [1.0]

def undefined(prompts, completions):
    return [float("nan")] * len(completions)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Prepared data, a proxy and another reward model, a policy with checkpoints, rules."""
    folder = tmp_path_factory.mktemp("saved")
    data = folder / "data"
    data.mkdir()
    for split, prompts in (
        ("train", [" Question  LONG 0 ", "question very long 1", "x"]),
        ("validation", PROMPTS),
    ):
        rows = [
            {"prompt": p, "chosen": "a", "rejected": "b", "source": "s", "turns": 1}
            for p in prompts
        ]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "run.json").write_text(json.dumps({"dataset_fingerprint": current_fingerprint(data)}))
    for number, name in enumerate(("proxy", "gold")):
        write_adapter(folder / name, seed=number, head=True)
    for number, name in enumerate(("ppo", "ppo/checkpoint-2", "ppo/checkpoint-4"), start=5):
        write_adapter(folder / name, seed=number)
    shutil.copytree(folder / "ppo", folder / "dpo")
    (folder / "ppo" / "trainer_state.json").write_text('{"global_step": 6}')
    (folder / "rules.py").write_text(RULES)
    return folder


def write_adapter(folder, seed, head=False, base="tiny"):
    roles = Roles(open_base(base))
    generator = torch.Generator().manual_seed(seed)
    roles.attach("role", LoraConfig(r=2, target_modules=["q_proj"]), trainable=False)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if ".role." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if head:
        weight = torch.randn(1, 32, generator=generator)
        roles.attach_head("role", weight, None, trainable=False)
    roles.save_role("role", folder)
    open_tokenizer("tiny").save_pretrained(folder)


@pytest.fixture
def arguments(saved, tmp_path):
    def build(**changes):
        settings = {
            "output_dir": str(tmp_path),
            "dataset_name": str(saved / "data"),
            "reward_model_path": str(saved / "proxy"),
            "models": [f"ppo={saved / 'ppo'}"],
            "gold_func": f"{saved / 'rules.py'}:length",
            "eval_prompts": 8,
            "samples_per_prompt": 2,
            "max_completion_length": 6,
            "batch_size": 4,
        }
        return EvaluationArguments(**settings | changes)

    return build
