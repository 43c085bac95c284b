"""A policy trained by QLoRA is evaluated on the base that it was trained on, in 4 bits."""

import json

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, ModelConfig

from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.collection import collect
from rlhf_recipes.evaluation.collect.provenance import read_adapters, weights_fingerprint
from rlhf_recipes.logprobs import exact_kl
from rlhf_recipes.models.loading import Precision, open_base, open_language_model, open_tokenizer
from rlhf_recipes.roles import Roles

pytest.importorskip("bitsandbytes", reason="quantization is bitsandbytes'")

QLORA = {"dtype": "bfloat16", "load_in_4bit": True}
IDS = torch.arange(5, 45)[None]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A DPO trainer after two steps on a base in 4 bits, with its run folder."""
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    pairs = [{"prompt": f"say {i}", "chosen": " yes", "rejected": " no"} for i in range(4)]
    trainer = DPOTrainer(
        model=open_language_model(ModelConfig(model_name_or_path="tiny", **QLORA)),
        args=DPOConfig(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=0.1,
            bf16=False,
            activation_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=open_tokenizer("tiny"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    trainer.train()
    trainer.save_model()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(QLORA))
    return trainer


@pytest.fixture(scope="module")
def arguments(trainer, tmp_path_factory):
    """An evaluation of that policy, with a reward model trained in the same precision."""
    folder = tmp_path_factory.mktemp("evaluation")
    roles = Roles(open_base("tiny", **Precision.read(QLORA).kwargs()))
    roles.attach("reward", LoraConfig(**LORA), trainable=False)
    roles.attach_head("reward", torch.ones(1, 32), None, trainable=False)
    roles.save_role("reward", folder / "reward")
    open_tokenizer("tiny").save_pretrained(folder / "reward")
    (folder / "reward" / "recipe.yaml").write_text(yaml.safe_dump(QLORA))
    (folder / "data").mkdir()
    for split in ("train", "validation"):
        rows = [
            {"prompt": f"{split} {i}", "chosen": "a", "rejected": "b", "source": "s", "turns": 1}
            for i in range(4)
        ]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "data" / "run.json").write_text("{}")
    return EvaluationArguments(
        output_dir=str(folder / "out"),
        dataset_name=str(folder / "data"),
        reward_model_path=str(folder / "reward"),
        models=[f"dpo={trainer.args.output_dir}"],
        max_completion_length=5,
    )


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=IDS).logits


def test_the_kl_of_the_evaluated_base_from_the_trained_one_is_0(trainer, arguments):
    """0 in 4 bits; from the base without quantization it would be more than 0.01 nats per token."""
    adapters = read_adapters(arguments)
    assert adapters.precision == Precision.read(QLORA)
    base = adapters.proxy.base
    evaluated = open_base(base.name, **adapters.precision.kwargs())
    with trainer.model.disable_adapter():
        trained = logits_of(trainer.model)
    assert exact_kl(trained, logits_of(evaluated)).max() == 0
    unquantized = open_base(base.name, dtype="bfloat16")
    assert exact_kl(trained, logits_of(unquantized)).mean() > 0.01


def test_the_policy_computes_in_evaluation_what_it_computed_in_training(trainer, arguments):
    adapters = read_adapters(arguments)
    roles = Roles(open_base(adapters.proxy.base.name, **adapters.precision.kwargs()))
    roles.attach_saved("dpo", adapters.policies["dpo"], trainable=False)
    trained = logits_of(trainer.model)
    with roles.use("dpo"):
        # TRL computed its LoRA in bfloat16, a role computes it in float32.
        assert exact_kl(trained, logits_of(roles.base)).mean() < 1e-3
    assert exact_kl(trained, logits_of(roles.base)).mean() > 1e-2  # training moved it


def test_a_collection_says_how_its_base_was_held(trainer, arguments):
    collect(arguments, read_adapters(arguments))
    path = f"{arguments.output_dir}/samples/collection.json"
    with open(path, encoding="utf-8") as file:
        facts = json.load(file)
    held = "bfloat16, quantized to 4 bits (nf4)"
    trained = {"reward_model_path": held, "dpo": held}
    assert facts["precision"] == {"base": held, "trained": trained}
    same = open_language_model(ModelConfig(model_name_or_path="tiny", **QLORA))
    assert facts["base_fingerprint"] == weights_fingerprint(same)
