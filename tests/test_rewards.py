"""A reward model gives the scores that it gave in training, as computed by TRL itself."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.precision import train_in_float32
from rlhf_recipes.reward_functions import REWARD_MODEL
from rlhf_recipes.rewards import (
    RewardModel,
    pooled_position,
    scored_ids,
)
from rlhf_recipes.roles import Roles
from tests.ppo.conftest import make_trainer

ANSWERS = [("yes", "no, not at all"), ("a long answer here", "b"), ("same", "sane"), ("x y", "z")]


def pairs(conversational: bool) -> Dataset:
    def side(text: str, role: str = "assistant"):
        return [{"role": role, "content": text}] if conversational else text

    prompts = [f"question {'very ' * i}plain?" for i in range(len(ANSWERS))]
    return Dataset.from_list(
        [
            {"prompt": side(p, "user"), "chosen": side(c), "rejected": side(r)}
            for p, (c, r) in zip(prompts, ANSWERS, strict=True)
        ]
    )


def trained(
    folder, conversational: bool, pad_is_eos: bool = False, dtype: str = "float32", **changes
) -> RewardTrainer:
    tokenizer = open_tokenizer("tiny")
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = RewardTrainer(
        model=base_path("tiny"),
        args=RewardConfig(
            output_dir=str(folder),
            max_steps=5,
            learning_rate=1e-2,
            per_device_train_batch_size=2,
            activation_checkpointing=False,
            save_strategy="no",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            model_init_kwargs={"dtype": dtype},
            **{"bf16": False, **changes},
        ),
        train_dataset=pairs(conversational),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"]),
    )
    train_in_float32(trainer)
    trainer.train()
    trainer.save_model()
    return trainer


@torch.no_grad()
def training_scores(trainer: RewardTrainer) -> list[float]:
    """Compute scores of all chosen, then all rejected completions, as in training."""
    trainer.model.eval()
    rows = [dict(row) for row in trainer.train_dataset]
    batch = trainer.data_collator(rows)
    return trainer.model(**batch).logits.squeeze(-1).tolist()


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_equal_those_of_training(tmp_path, conversational, pad_is_eos, batch_size):
    trainer = trained(tmp_path, conversational, pad_is_eos)
    reward_model = RewardModel.load(tmp_path)
    reward_model.batch_size = batch_size
    rows = pairs(conversational)
    prompts = list(rows["prompt"]) * 2
    completions = list(rows["chosen"]) + list(rows["rejected"])
    expected = training_scores(trainer)
    assert reward_model(prompts, completions) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize(
    ("dtype", "bf16"), [("float32", True), ("bfloat16", True), ("bfloat16", False)]
)
def test_scores_in_bf16_equal_those_of_training_up_to_its_rounding(tmp_path, dtype, bf16):
    """In PPO, and on a base of its own as in GRPO and evaluation, which never use autocast."""
    trainer = trained(tmp_path, conversational=False, dtype=dtype, bf16=bf16, use_cpu=True)
    (tmp_path / "recipe.yaml").write_text(f"dtype: {dtype}\n")
    rows = pairs(conversational=False)
    prompts = list(rows["prompt"]) * 2
    completions = list(rows["chosen"]) + list(rows["rejected"])
    expected = training_scores(trainer)
    ppo = make_trainer(tmp_path / "ppo", str(tmp_path), dtype=dtype, bf16=bf16, use_cpu=True)
    in_ppo = ppo.worker.scorer.function_scores(prompts, completions, {})[REWARD_MODEL]
    largest = max(map(abs, expected))
    rounding = 4 * torch.finfo(torch.bfloat16).eps * largest
    assert in_ppo == pytest.approx(expected, abs=rounding)
    assert RewardModel.load(tmp_path)(prompts, completions) == pytest.approx(
        in_ppo, abs=1e-6 * largest
    )


def test_the_ids_scored_are_the_ids_trained_on(tmp_path):
    for conversational in (False, True):
        rows = pairs(conversational)
        trainer = trained(tmp_path / str(conversational), conversational)
        for row, made in zip(rows, trainer.train_dataset, strict=True):
            text = row["chosen"][-1]["content"] if conversational else row["chosen"]
            assert scored_ids(open_tokenizer("tiny"), row["prompt"], text) == made["chosen_ids"]


def test_the_last_token_that_is_not_padding_is_pooled():
    assert pooled_position([5, 6, 7], pad_token_id=0) == 2
    assert pooled_position([5, 6, 2], pad_token_id=2) == 1  # with pad = eos, like transformers
    assert pooled_position([2, 2], pad_token_id=2) == 0


def test_an_adapter_without_a_head_is_no_reward_model(tmp_path):
    roles = Roles(open_base("tiny"))
    roles.attach("policy", LoraConfig(target_modules=["q_proj"]), trainable=True)
    roles.save_role("policy", tmp_path)
    with pytest.raises(RecipeError, match="without a scalar head"):
        read_adapter(tmp_path).check_head()
