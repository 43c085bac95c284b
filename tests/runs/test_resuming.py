"""A run that goes on from a checkpoint ends, and is reported, as one that was never cut off."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.models.starting import open_policy
from rlhf_recipes.preferences import chosen_completions
from rlhf_recipes.runs.resuming import WholeGenerations, seconds_trained, train
from tests.models.test_starting import recipe, write_start
from tests.ppo.conftest import make_trainer, random_reward_model

PROMPTS = Dataset.from_dict({"prompt": [f"say {'so ' * (i % 3)}{i}" for i in range(6)]})
PAIRS = Dataset.from_list(
    [{"prompt": f"say {i}", "chosen": " yes" * (1 + i % 3), "rejected": " no"} for i in range(10)]
)
ELAPSED = {"eps", "seconds", "step_time", "train_runtime"}


def lora(task: str) -> LoraConfig:
    # Dropout draws from the generator that a checkpoint has to bring back.
    return LoraConfig(r=2, target_modules="all-linear", task_type=task, lora_dropout=0.1)


def settings(folder: Path, **changes):
    given = {
        "output_dir": str(folder),
        "bf16": False,
        "activation_checkpointing": False,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "num_train_epochs": 2,
        "save_steps": 1,
        "logging_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return given | changes


def letters(completions, **_):
    return [float(sum(map(str.isalpha, completion))) for completion in completions]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("sft"), lora_target_modules=["all-linear"])


def opened(start: str | None) -> dict[str, Any]:
    """Return `model` and `peft_config` of a policy, from the base or from a start."""
    if start is None:
        return {"model": open_base("tiny"), "peft_config": lora("CAUSAL_LM")}
    model = recipe(lora_target_modules=["all-linear"], lora_dropout=0.1)
    policy, config = open_policy(model, read_adapter(start), dropout=True)
    return {"model": policy, "peft_config": config}


def grpo(folder: Path, start: str | None = None, **changes) -> GRPOTrainer:
    own = {"num_generations": 2, "max_completion_length": 6, "temperature": 1.0, "beta": 0.05}
    args = GRPOConfig(**settings(folder, **own | changes))
    return GRPOTrainer(
        **opened(start),
        args=args,
        reward_funcs=letters,
        train_dataset=PROMPTS,
        processing_class=open_tokenizer("tiny"),
        rollout_func=rollout_func_for(args),
        callbacks=[WholeGenerations()],
    )


def dpo(folder: Path, start: str | None = None, **changes) -> DPOTrainer:
    return DPOTrainer(
        **opened(start),
        args=DPOConfig(**settings(folder, **changes)),
        train_dataset=PAIRS,
        processing_class=open_tokenizer("tiny"),
    )


def sft(folder: Path, **changes) -> SFTTrainer:
    return SFTTrainer(
        model=open_base("tiny"),
        args=SFTConfig(**settings(folder, **changes)),
        train_dataset=chosen_completions(PAIRS, range(len(PAIRS))),
        processing_class=open_tokenizer("tiny"),
        peft_config=lora("CAUSAL_LM"),
    )


def reward(folder: Path, **changes) -> RewardTrainer:
    return RewardTrainer(
        model=base_path("tiny"),
        args=RewardConfig(**settings(folder, **changes)),
        train_dataset=PAIRS,
        processing_class=open_tokenizer("tiny"),
        peft_config=lora("SEQ_CLS"),
    )


def timeless(entry):
    return {n: v for n, v in entry.items() if n not in ELAPSED and not n.endswith("_per_second")}


def check_resumes(make, folder: Path, at: list[int], **changes):
    """Resume from every checkpoint named, and compare with the run that wrote them."""
    straight = make(folder / "straight", **changes)
    metrics = train(straight, None)
    assert any(p.any() for n, p in straight.model.named_parameters() if "lora_B" in n)
    for step in at:
        checkpoint = str(folder / "straight" / f"checkpoint-{step}")
        resumed = make(folder / f"from-{step}", **changes)
        found = train(resumed, checkpoint)
        weights = dict(resumed.model.named_parameters())
        for name, parameter in straight.model.named_parameters():
            assert torch.equal(parameter, weights[name]), f"{name} after step {step}"
        assert timeless(found) == timeless(metrics)
        assert found["train_runtime"] >= seconds_trained(checkpoint) > 0
        histories = [list(map(timeless, t.state.log_history)) for t in (straight, resumed)]
        assert histories[0] == histories[1]
    return straight, metrics


# Six prompts in groups of two, one group per micro-batch, two epochs. For each case the settings,
# the steps that checkpoints are at, the last of which ends the run, and those to resume from.
GRPO = {
    "epochs": ({}, range(1, 13), [1, 6, 8]),
    "accumulated": ({"gradient_accumulation_steps": 2}, range(1, 7), [1, 4, 6]),
    "iterated": ({"num_iterations": 2, "max_steps": 15}, [*range(2, 15, 2), 15], [2, 14]),
    "longer": ({"steps_per_generation": 3}, range(3, 13, 3), [3, 9]),
    "uneven": ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, [3, 6], [3]),
}


@pytest.mark.parametrize("case", GRPO)
def test_grpo_resumes_bit_for_bit(case, tmp_path):
    changes, saved, at = GRPO[case]
    straight, metrics = check_resumes(grpo, tmp_path, at, log_completions=True, **changes)
    checkpoints = (tmp_path / "straight").glob("checkpoint-*")
    assert {int(path.name.rpartition("-")[2]) for path in checkpoints} == set(saved)
    assert metrics["num_tokens"] == straight.state.num_input_tokens_seen
    for step in at:
        first, second = (
            pd.read_parquet(sorted((tmp_path / folder / "completions").glob("*.parquet"))[-1])
            for folder in ("straight", f"from-{step}")
        )
        if step != saved[-1]:
            pd.testing.assert_frame_equal(first, second)


def test_a_checkpoint_within_a_generation_is_refused(tmp_path):
    trainer = grpo(tmp_path, num_iterations=2, max_steps=4)
    trainer.remove_callback(WholeGenerations)
    trainer.train()
    with pytest.raises(RecipeError, match="at step 3 lies within a generation"):
        train(grpo(tmp_path, num_iterations=2, max_steps=4), str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("beta", [0.05, 0.0])
def test_grpo_from_a_start_resumes_bit_for_bit(beta, start, tmp_path):
    """A checkpoint holds the policy alone; its reference is made again from the start."""
    straight, _ = check_resumes(grpo, tmp_path, [1, 6], start=start, beta=beta)
    assert not list((tmp_path / "straight").glob("checkpoint-*/ref"))
    assert ("ref" in straight.model.peft_config) == (beta > 0)


def test_dpo_from_a_start_resumes_bit_for_bit(start, tmp_path):
    straight, _ = check_resumes(dpo, tmp_path, [1, 4], start=start)
    reference = {n: p for n, p in straight.model.named_parameters() if ".ref." in n}
    saved = read_adapter(start).weights
    assert {n.replace(".ref.", "."): p.tolist() for n, p in reference.items()} == {
        n: w.tolist() for n, w in saved.items()
    }


@pytest.mark.parametrize("make", [sft, dpo, reward])
def test_training_on_pairs_resumes_bit_for_bit(make, tmp_path):
    """Ten pairs, two a micro-batch, two micro-batches a step: the third step has only one."""
    straight, metrics = check_resumes(make, tmp_path, [1, 3, 4, 6], gradient_accumulation_steps=2)
    assert straight.state.global_step == 6
    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 6)
    tokens = [e["num_tokens"] for e in straight.state.log_history if "num_tokens" in e]
    assert tokens == sorted(tokens)
    assert metrics["num_tokens"] == tokens[-1]


@pytest.mark.parametrize("make", [dpo, reward, grpo])
def test_training_in_bf16_resumes_bit_for_bit(make, tmp_path):
    check_resumes(make, tmp_path, [2], max_steps=4, bf16=True, use_cpu=True)


def test_ppo_resumes_bit_for_bit(tmp_path):
    """Two PPO epochs of two minibatches per rollout: a resumed run begins within one."""
    reward_folder = random_reward_model(tmp_path / "reward")

    def ppo(folder, **changes):
        changes |= {"save_strategy": "steps", "save_steps": 1, "logging_steps": 4}
        return make_trainer(folder, reward_folder, max_steps=6, **changes)

    _, metrics = check_resumes(ppo, tmp_path, [1, 4, 6])
    assert metrics["episode"] == 16


def test_what_is_said_of_a_run_is_in_its_last_log_entry_too(tmp_path):
    trainer = dpo(tmp_path, max_steps=3, save_steps=2)
    metrics = train(trainer, None)
    assert trainer.state.log_history[-1].items() >= metrics.items()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    # `logging_steps` is 4: the checkpoint itself had it logged.
    assert [entry["step"] for entry in state["log_history"]] == [2]
    assert math.isfinite(metrics["train_loss"])
