"""What `import rlhf_recipes` offers: each name is there, and the example in its docstring runs."""

import doctest
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import rlhf_recipes
from rlhf_recipes.models.loading import base_path, open_base
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.preparation import prepare, write_prepared
from rlhf_recipes.roles import Roles
from tests.evaluation.conftest import EFFECTS, make_records, write_collection

CLASSES = {AutoModelForCausalLM, AutoTokenizer, Dataset, DPOTrainer, LoraConfig}
PAIRS = [
    {"prompt": f"Is {i} even?", "chosen": f"It is {i}.", "rejected": "I do not know."}
    for i in range(12)
]


def reward_adapter(folder):
    roles = Roles(open_base("tiny"))
    roles.attach("reward", LoraConfig(r=4, target_modules=["q_proj"]), trainable=True)
    roles.attach_head("reward", torch.ones(1, 32), None, trainable=False)
    roles.save_role("reward", folder)
    return folder


def prepared(folder):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    arguments = DataArguments(dataset_name=str(file), output_dir=str(folder / "out"))
    write_prepared(prepare(arguments), arguments)
    return folder / "out" / "data"


@pytest.fixture
def names(tmp_path):
    """What the examples use without making it themselves."""
    (tmp_path / "pairs").mkdir()
    samples = {name: make_records(name, EFFECTS[name], 12, 4) for name in ("base", "ppo")}
    return {
        **{cls.__name__: cls for cls in CLASSES},
        "base": base_path("tiny"),
        "output_dir": str(tmp_path / "run"),
        "dpo_args": DPOConfig(str(tmp_path / "dpo"), bf16=False, report_to="none"),
        "pairs": Dataset.from_list(PAIRS),
        "data": prepared(tmp_path / "pairs"),
        "reward_folder": reward_adapter(tmp_path / "reward"),
        "collected": write_collection(tmp_path / "collected", samples),
    }


@pytest.mark.parametrize("name", rlhf_recipes.__all__)
def test_the_example_of_a_public_name_runs(name, names, monkeypatch):
    if not torch.cuda.is_available():  # else DeepSpeed, once imported, writes that it takes the CPU
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    documented = getattr(rlhf_recipes, name)
    example = doctest.DocTestParser().get_doctest(documented.__doc__, names, name, None, 0)
    assert example.examples
    said: list[str] = []
    ran = doctest.DocTestRunner().run(example, out=said.append)
    assert ran.failed == 0, "".join(said)


def test_every_public_name_is_listed():
    assert set(rlhf_recipes.__all__) <= set(dir(rlhf_recipes))
    with pytest.raises(AttributeError, match="has no attribute 'PPOTrainr'"):
        _ = rlhf_recipes.PPOTrainr
