"""PPO and GRPO on a toy whose optimum is known: one token an answer, a reward of 0 or 1.

max E[r] - beta KL(pi || ref) has the solution pi* = ref exp(r / beta) / Z with the value
beta log Z, where Z = E_ref exp(r / beta).
"""

import math
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.ppo.attaching import POLICY
from tests.ppo.conftest import lora, make_trainer

PROMPTS = Dataset.from_dict({"prompt": ["say it"] * 64})
BETA = 0.25


def early_letter(completions, **_):
    """1 where the answer is one of eight letters: about one token in sixteen of the base's."""
    return [float(text in tuple("abcdefgh")) for text in completions]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One layer, with more dimensions than tokens: LoRA can give it any distribution."""
    folder = str(tmp_path_factory.mktemp("wide"))
    tokenizer = open_tokenizer("tiny")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Found(NamedTuple):
    """What a policy's distribution over the one token says."""

    reward: float
    kl: float
    value: float


@torch.no_grad()
def toy(model) -> tuple[torch.Tensor, torch.Tensor]:
    """The distribution over the next token, and each token's reward."""
    tokenizer = open_tokenizer("tiny")
    ids = torch.tensor([tokenizer("say it")["input_ids"]])
    probabilities = model(input_ids=ids).logits[0, -1].double().softmax(-1)
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(probabilities))]
    return probabilities, torch.tensor(early_letter(texts), dtype=torch.float64)


def found_by(model, base) -> Found:
    policy, rewards = toy(model)
    reference, _ = toy(open_base(base))
    reward = float(policy @ rewards)
    kl = float(policy @ (policy / reference).log())
    return Found(reward, kl, reward - BETA * kl)


def optimum(base) -> Found:
    reference, rewards = toy(open_base(base))
    tilted = reference * (rewards / BETA).exp()
    policy = tilted / tilted.sum()
    reward = float(policy @ rewards)
    return Found(
        reward, float(policy @ (policy / reference).log()), BETA * math.log(float(tilted.sum()))
    )


def test_the_optimum_is_consistent_and_far_from_the_base(base):
    best = optimum(base)
    assert best.value == pytest.approx(best.reward - BETA * best.kl)
    assert found_by(open_base(base), base).value < 0.25 * best.value


def trained_by_ppo(folder, base) -> Found:
    ppo = make_trainer(
        folder,
        None,
        prompts=PROMPTS,
        base=base,
        reward_funcs=[early_letter],
        per_device_train_batch_size=32,
        num_mini_batches=2,
        num_ppo_epochs=2,
        max_completion_length=1,
        max_steps=400,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        kl_coef=BETA,
        missing_eos_penalty=None,
        normalize_rewards=False,
        log_completions=False,
    )
    ppo.train()
    with ppo.roles.use(POLICY):
        return found_by(ppo.roles.base, base)


def trained_by_grpo(folder, base) -> Found:
    trainer = GRPOTrainer(
        model=base,
        reward_funcs=early_letter,
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=64,
            num_generations=64,
            max_completion_length=1,
            max_steps=200,
            learning_rate=3e-3,
            beta=BETA,
            scale_rewards="none",
            loss_type="dr_grpo",
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=PROMPTS,
        processing_class=open_tokenizer("tiny"),
        peft_config=lora(),
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    return found_by(trainer.model, base)


@pytest.fixture(scope="module")
def by_ppo(tmp_path_factory, base):
    return trained_by_ppo(tmp_path_factory.mktemp("ppo"), base)


def test_ppo_reaches_the_optimum_and_the_divergence_that_theory_gives(base, by_ppo):
    best = optimum(base)
    assert by_ppo.value > 0.9 * best.value
    assert 0.85 < by_ppo.kl / best.kl < 1.15


def test_grpo_and_ppo_agree(tmp_path, base, by_ppo):
    """GRPO's penalty is the forward divergence, whose optimum lies close by in this toy."""
    by_grpo = trained_by_grpo(tmp_path, base)
    assert by_grpo.value > 0.9 * optimum(base).value
    assert abs(by_ppo.reward - by_grpo.reward) < 0.1
