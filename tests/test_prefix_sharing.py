"""Sharing prefixes changes nothing but time: TRL's trainers with it and without, on one batch."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from rlhf_recipes.models import open_tokenizer
from rlhf_recipes.prefix_sharing import share_prefixes

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "llama": (LlamaConfig, SIZES, ["q_proj", "v_proj", "down_proj"]),
    "mistral": (MistralConfig, {**SIZES, "sliding_window": None}, ["q_proj", "v_proj"]),
    "qwen2": (Qwen2Config, SIZES, ["k_proj", "up_proj"]),
    "qwen3": (Qwen3Config, SIZES, ["q_proj", "o_proj"]),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4}, ["c_attn", "c_proj"]),
}
PROMPTS = [
    "What is a cloud made of?",
    "Say hi.",
    "Name three rivers in Europe, please, and one more.",
]
CHOSEN = ["Water.", "Hi", "Rhine, Danube, Volga, Po."]
REJECTED = ["Watered-down milk, I am told, but who knows that?", "H", "No."]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


def tiny(architecture, tokenizer, auto=AutoModelForCausalLM, attention="sdpa", **changes):
    """A model of that architecture with random weights, always the same."""
    config_class, sizes, _ = ARCHITECTURES[architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**sizes, "initializer_range": 0.2, **changes},
    )
    torch.manual_seed(0)
    if auto is AutoModelForSequenceClassification:
        config.num_labels = 1
    return auto.from_config(config, attn_implementation=attention)


def pairs(conversational):
    if not conversational:
        return Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})

    def turn(role, texts):
        return [[{"role": role, "content": text}] for text in texts]

    return Dataset.from_dict(
        {
            "prompt": turn("user", PROMPTS),
            "chosen": turn("assistant", CHOSEN),
            "rejected": turn("assistant", REJECTED),
        }
    )


def options(folder, **changes):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 3,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        **changes,
    }


def randomise(model):
    """Weights that do something in every adapter: B = 0 would make the policy the reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def trainer_of(
    kind, architecture, tokenizer, folder, *, peft=True, attention="sdpa", data=None, **changes
):
    checkpointing = changes.pop("gradient_checkpointing", False)
    changes["activation_checkpointing"] = checkpointing
    config = None
    if peft:
        targets = changes.pop("lora", ARCHITECTURES[architecture][2])
        transposed = architecture == "gpt2"
        config = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=transposed)
    shared = {
        "train_dataset": pairs(conversational=True) if data is None else data,
        "processing_class": tokenizer,
        "peft_config": config,
    }
    if kind == "reward":
        model = tiny(architecture, tokenizer, AutoModelForSequenceClassification, attention)
        if config is not None:
            config.task_type = "SEQ_CLS"
        trainer = RewardTrainer(
            model=model, args=RewardConfig(**options(folder, **changes)), **shared
        )
    else:
        model = tiny(architecture, tokenizer, AutoModelForCausalLM, attention)
        reference = None if peft else tiny(architecture, tokenizer, attention=attention)
        args = DPOConfig(**options(folder, **changes))
        trainer = DPOTrainer(model=model, ref_model=reference, args=args, **shared)
    randomise(trainer.model)
    return trainer


def one_step(trainer):
    """Loss, metrics and gradients of the first batch."""
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    metrics: dict[str, float] = {}
    trainer.log(metrics)
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **metrics}, gradients


def assert_same(stock, shared):
    (found, gradients), (metrics, own_gradients) = stock, shared
    assert found.keys() == metrics.keys()
    assert gradients.keys() == own_gradients.keys()
    for name, value in found.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            own_gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name
        )


def compare(kind, architecture, tokenizer, folder, **changes):
    stock = trainer_of(kind, architecture, tokenizer, folder, **changes)
    shared = trainer_of(kind, architecture, tokenizer, folder, **changes)
    assert share_prefixes(shared.model)
    if getattr(shared, "ref_model", None) is not None:
        assert share_prefixes(shared.ref_model)
    assert_same(one_step(stock), one_step(shared))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize("peft", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_metrics_and_gradients_are_those_of_trl(
    kind, architecture, peft, attention, tokenizer, tmp_path
):
    compare(kind, architecture, tokenizer, tmp_path, peft=peft, attention=attention)
