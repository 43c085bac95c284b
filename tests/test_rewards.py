"""A reward model gives the scores that it gave in training, as computed by TRL itself."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from rlhf_recipes import share_prefixes
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.loading import Precision, base_path, open_base, open_tokenizer
from rlhf_recipes.precision import train_in_float32
from rlhf_recipes.reward_functions import REWARD_MODEL
from rlhf_recipes.rewards import (
    RewardModel,
    RewardRole,
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


def grpo_trainer(folder, reward, peft_config=None, base="tiny", **changes):
    """GRPO on four prompts whose only reward function is `reward`, not attached yet."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 5,
        "max_steps": 2,
        "learning_rate": 0.05,
        "beta": 0.05,
        "save_steps": 1,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = GRPOConfig(**settings | changes)
    return GRPOTrainer(
        model=base if isinstance(base, torch.nn.Module) else open_base(base),
        args=args,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": ["say", "why so?", "and", "x y z"]}),
        processing_class=open_tokenizer("tiny"),
        peft_config=peft_config or LoraConfig(r=4, target_modules="all-linear"),
        rollout_func=rollout_func_for(args),
    )


def reward_folder(folder):
    """Save a reward adapter with random weights; with B = 0 it would score as the bare base."""
    roles = Roles(open_base("tiny"))
    torch.manual_seed(3)
    roles.attach("reward", LoraConfig(r=4, target_modules=["q_proj", "o_proj"]), trainable=False)
    with torch.no_grad():
        for name, weight in roles.base.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    roles.attach_head("reward", torch.randn(1, 32), None, trainable=False)
    roles.save_role("reward", folder)
    return folder


PROMPTS, COMPLETIONS = ["say", "why so?", "why so?"], ["yes", "no, never", "because"]


@pytest.mark.parametrize("sharing", [True, False])
def test_a_role_on_the_policy_s_base_scores_as_a_reward_model_of_its_own(tmp_path, sharing):
    """Within 1e-5, before and after training, which leaves base and reward adapter alone."""
    expected = RewardModel.load(reward_folder(tmp_path / "reward"))(PROMPTS, COMPLETIONS)
    assert len(set(expected)) == 3
    role = RewardRole(tmp_path / "reward", prefix_sharing=sharing)
    trainer = grpo_trainer(tmp_path / "grpo", role)
    if sharing:
        assert share_prefixes(trainer.model)
    policy = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    role.attach(trainer.model)
    assert role(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == set(policy)
    trainer.train()
    moved = dict(trainer.model.named_parameters())
    assert any(not torch.equal(moved[name], weight) for name, weight in policy.items())
    assert role(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    base = trainer.model.get_base_model()
    assert base.training  # scoring leaves the mode as it was
    assert role.reward_model.roles.base is base  # no second base
    assert role.reward_model.roles.shares_prefixes == sharing


def test_grpo_trains_to_the_same_weights_with_the_reward_model_on_either_base(tmp_path):
    """Same samples, scores and steps; and a checkpoint has the policy's adapter alone."""
    reward_folder(tmp_path / "reward")
    weights = []
    for name, own_base in (("shared", None), ("own", Precision())):
        role = RewardRole(tmp_path / "reward")
        trainer = grpo_trainer(tmp_path / name, role)
        role.attach(trainer.model, own_base=own_base)
        trainer.train()
        saved = {path.parent.name for path in (tmp_path / name).rglob("adapter_config.json")}
        assert saved == {"checkpoint-1", "checkpoint-2"}
        weights.append(load_file(tmp_path / name / "checkpoint-2" / "adapter_model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-5), name
    assert any(weight.abs().max() > 0 for name, weight in weights[0].items() if "lora_B" in name)


def test_grpo_resumes_with_the_reward_model_on_the_policy_s_base(tmp_path):
    reward_folder(tmp_path / "reward")

    def trained_from(checkpoint):
        role = RewardRole(tmp_path / "reward")
        trainer = grpo_trainer(tmp_path / "grpo", role)
        role.attach(trainer.model)
        trainer.train(resume_from_checkpoint=checkpoint)
        return {n: p.clone() for n, p in trainer.model.named_parameters() if "lora_" in n}

    straight = trained_from(None)
    resumed = trained_from(str(tmp_path / "grpo" / "checkpoint-1"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in straight.items())
