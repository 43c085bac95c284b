"""Policies of TRL's trainers that start as an SFT adapter, which is their reference too."""

import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, ModelConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.models.adapters import read_adapter
from rlhf_recipes.models.architectures import meta_model
from rlhf_recipes.models.loading import Base, open_base, open_tokenizer
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.models.starting import check_same_lora, open_policy
from rlhf_recipes.prefix_sharing.forward import share_prefixes
from rlhf_recipes.roles import Roles

PAIRS = Dataset.from_list(
    [{"prompt": f"say {i} ", "chosen": "yes" * (1 + i % 3), "rejected": "no"} for i in range(4)]
)
LN_2 = 0.693147


def recipe(**changes) -> ModelConfig:
    lora = {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}
    return ModelConfig("tiny", use_peft=True, **{**lora, **changes})


def write_start(folder, **changes):
    """Write an adapter of random weights, with B not 0, as SFT would."""
    roles = Roles(open_base("tiny"))
    roles.attach("sft", lora_config(recipe(**changes)), trainable=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if ".sft." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    roles.save_role("sft", folder)
    return str(folder)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return write_start(tmp_path_factory.mktemp("sft"))


def settings(folder, **changes):
    return {
        "output_dir": str(folder),
        "bf16": False,
        "activation_checkpointing": False,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **changes,
    }


def dpo(folder, start, **changes) -> DPOTrainer:
    policy, lora = open_policy(recipe(), read_adapter(start), dropout=False)
    return DPOTrainer(
        model=policy,
        args=DPOConfig(**settings(folder, **changes)),
        train_dataset=PAIRS,
        processing_class=open_tokenizer("tiny"),
        peft_config=lora,
    )


def letters(completions, **_):
    return [float(sum(map(str.isalpha, completion))) for completion in completions]


def grpo(folder, start, **changes) -> GRPOTrainer:
    own = {"num_generations": 2, "max_completion_length": 6, "beta": 0.1, "disable_dropout": True}
    args = GRPOConfig(**settings(folder, **{**own, **changes}))
    policy, lora = open_policy(recipe(), read_adapter(start), dropout=False)
    return GRPOTrainer(
        model=policy,
        args=args,
        reward_funcs=letters,
        train_dataset=PAIRS.select_columns("prompt"),
        processing_class=open_tokenizer("tiny"),
        peft_config=lora,
        rollout_func=rollout_func_for(args),
    )


def adapter_weights(trainer, name):
    parameters = trainer.model.named_parameters()
    return {n: p.detach().clone() for n, p in parameters if f".{name}." in n}


def completion_logps(model, prompt, completion) -> float:
    tokenizer = open_tokenizer("tiny")
    ids = tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]
    length = len(ids) - len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(logps.gather(-1, torch.tensor(ids[1:])[:, None])[-length:].sum())


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("make", [dpo, grpo])
def test_a_policy_begins_at_its_start_and_only_the_policy_is_trained(
    make, sharing, checkpointing, start, tmp_path
):
    trainer = make(tmp_path, start, activation_checkpointing=checkpointing)
    assert not sharing or share_prefixes(trainer.model)
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == set(adapter_weights(trainer, "default"))
    saved = read_adapter(start).weights
    for name in ("default", "ref"):
        weights = adapter_weights(trainer, name)
        assert {n.replace(f".{name}.", "."): w.tolist() for n, w in weights.items()} == {
            n: w.tolist() for n, w in saved.items()
        }
    before = adapter_weights(trainer, "ref")
    trainer.train()
    first = trainer.state.log_history[0]
    if make is dpo:
        assert first["loss"] == pytest.approx(LN_2, abs=1e-5)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    else:
        assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert trained == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    after = adapter_weights(trainer, "ref")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    policy = adapter_weights(trainer, "default")
    assert any(not torch.equal(policy[n], after[n.replace(".default.", ".ref.")]) for n in policy)


@pytest.mark.parametrize("sharing", [True, False])
def test_the_reference_of_dpo_is_the_start_loaded_by_itself(sharing, start, tmp_path):
    """Also after a step, when the policy has left it; the bare base is far away."""
    trainer = dpo(tmp_path, start)
    assert not sharing or share_prefixes(trainer.model)
    trainer.train()
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    trainer.model.eval()
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, dict(batch))
    alone = PeftModel.from_pretrained(open_base("tiny"), start).eval()
    for column, logps in (("chosen", chosen), ("rejected", rejected)):
        expected = [completion_logps(alone, row["prompt"], row[column]) for row in PAIRS]
        assert logps.tolist() == pytest.approx(expected, abs=1e-3)
        bare = [completion_logps(open_base("tiny"), row["prompt"], row[column]) for row in PAIRS]
        assert abs(sum(expected) - sum(bare)) > 0.1


@pytest.mark.parametrize("make", [dpo, grpo])
def test_plain_peft_loads_the_trained_adapter_on_the_base_alone(make, start, tmp_path):
    trainer = make(tmp_path, start)
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "ref").exists()
    ids = torch.arange(5, 17)[None]
    alone = PeftModel.from_pretrained(open_base("tiny"), tmp_path).eval()
    trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, trainer.model(ids).logits)
        bare = open_base("tiny")(ids).logits
    assert not torch.allclose(alone(ids).logits, bare, atol=0.01)


def test_grpo_without_a_kl_has_no_reference(start, tmp_path):
    trainer = grpo(tmp_path, start, beta=0.0)
    assert set(trainer.model.peft_config) == {"default"}


def differ(start, **changes):
    with pytest.raises(RecipeError) as refused:
        check_same_lora(read_adapter(start), lora_config(recipe(**changes)), meta("tiny"))
    return str(refused.value)


def meta(base):
    return meta_model(Base(base).pinned())


def test_a_lora_that_is_not_the_start_s_is_refused_with_what_differs(start):
    assert "`lora_r` is 8 and 4" in differ(start, lora_r=8)
    assert "`lora_alpha` is 64 and 32" in differ(start, lora_alpha=64)
    assert "`use_rslora` is True and False" in differ(start, use_rslora=True)
    assert "`use_dora` is True and False" in differ(start, use_dora=True)
    both = differ(start, lora_r=8, lora_target_modules=["q_proj"])
    assert "`lora_r` is 8 and 4" in both and "only the adapter's have" in both
    assert "only the recipe's have" in differ(start, lora_target_modules=["all-linear"])


def test_the_same_layers_by_another_name_are_the_same_lora(start):
    pattern = [r".*\.self_attn\.(q|v)_proj"]
    for changes in ({}, {"lora_target_modules": pattern}, {"lora_dropout": 0.1}):
        check_same_lora(read_adapter(start), lora_config(recipe(**changes)), meta("tiny"))


def test_a_start_whose_base_weights_are_not_the_base_s_is_refused(start, tmp_path):
    """PEFT would write such a weight into the base, and so into the reference."""
    shutil.copytree(start, tmp_path / "sft")
    weights = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    weights["base_model.model.model.norm.weight"] = torch.full((32,), 2.0)
    save_file(weights, tmp_path / "sft" / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match=r"has another `base_model\.model\.model\.norm\.weight`"):
        open_policy(recipe(), read_adapter(tmp_path / "sft"), dropout=False)


def test_without_a_start_the_trainer_adds_the_recipe_s_lora():
    policy, lora = open_policy(recipe(), None, dropout=False)
    assert not isinstance(policy, PeftModel)
    assert isinstance(lora, LoraConfig) and lora.r == 4
