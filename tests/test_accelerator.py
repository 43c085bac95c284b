"""On a pretend accelerator no stage mixes devices, and the host seldom waits for it."""

from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from benchmarks import launches
from rlhf_recipes.evaluation.collect.measuring import KLSampler
from rlhf_recipes.generation.sampling import sample
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.prefix_sharing.forward import share_prefixes
from rlhf_recipes.prompts import pad, prompt_ids
from rlhf_recipes.rewards import RewardModel
from rlhf_recipes.roles import Roles
from tests.ppo.conftest import make_trainer, random_reward_model
from tests.prefix_sharing.test_forward import grpo, trainer_of
from tests.pretend_device import ACCELERATOR, PretendDevice

PROMPTS = ["say so", "say it so", "say it up"]
"""Three prompts, of which the last two are of one length."""

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


@pytest.fixture
def device():
    with PretendDevice() as device:
        yield device


def model_of(tokenizer, layers: int, dtype=torch.float32) -> LlamaForCausalLM:
    """A model with two query heads per key head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def roles_of(tokenizer, layers: int = 2, dtype=torch.float32, *, heads=("value",)) -> Roles:
    """Roles `policy`, and `value` with a head, on the accelerator."""
    roles = Roles(model_of(tokenizer, layers, dtype))
    roles.attach("policy", LoraConfig(r=2, target_modules=TARGETS), trainable=True)
    for role in heads:
        roles.attach(role, LoraConfig(r=2, target_modules=TARGETS), trainable=True)
        roles.attach_head(role, torch.randn(1, 32), torch.zeros(1), trainable=True)
    with torch.no_grad():
        for name, parameter in roles.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return roles.eval().to(ACCELERATOR)


def batch(tokenizer, prompts=("say it so", "say it all"), completions=("yes", "no", "or so")):
    """Ids and mask of each prompt with each completion, on the accelerator."""
    rows = [
        [
            *prompt_ids(tokenizer, f"tell me of the sun, and then {prompt}"),
            *tokenizer(end).input_ids,
        ]
        for prompt in prompts
        for end in completions
    ]
    return tuple(x.to(ACCELERATOR) for x in pad(rows, tokenizer.pad_token_id, left=True))


def test_sampling_mixes_no_devices_and_draws_what_the_cpu_draws(tokenizer, device):
    settings: dict[str, Any] = {"max_completion_length": 9, "num_completions": 2, "seed": 3}
    model = open_base("tiny")
    expected = sample(model, tokenizer, PROMPTS, **settings)
    drawn = sample(model.to(ACCELERATOR), tokenizer, PROMPTS, **settings)
    assert drawn == expected


def test_ppo_collects_a_rollout_and_takes_two_steps(tmp_path, monkeypatch, device):
    device_of_arguments: Any = TrainingArguments.device
    set_up = device_of_arguments.fget  # it makes the distributed state
    monkeypatch.setattr(
        TrainingArguments, "device", property(lambda args: set_up(args) and ACCELERATOR)
    )
    reward = random_reward_model(tmp_path / "reward")
    trainer = make_trainer(tmp_path, reward, lora_changes={"target_modules": TARGETS})
    trainer.roles.to(ACCELERATOR)
    losses = [trainer.training_step(trainer.model, {}) for _ in range(2)]
    assert all(loss.device == ACCELERATOR and bool(loss.isfinite()) for loss in losses)
    gradients = [p.grad for p in trainer.roles.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    assert trainer.means.pop()["val/ratio"] == pytest.approx(1, abs=1e-4)


def test_a_reward_model_scores(tokenizer, device):
    roles = roles_of(tokenizer)
    scores = RewardModel(roles, tokenizer, "value", 4)(PROMPTS, ["yes", "no", "maybe"])
    assert len(set(scores)) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_evaluation_samples_and_measures(dtype, tokenizer, device):
    """In float32 the sampler keeps hidden states, below it the policy has a pass of its own."""
    sampler = KLSampler(roles_of(tokenizer, dtype=dtype), tokenizer, None, 5, 1.0, 4)
    for role in (None, "policy"):
        rows = sampler.sample(role, PROMPTS, 2, seed=0)
        assert all((row["kl"] > 0) == (role is not None) for row in rows)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_trainer_of_pairs_that_shares_prefixes_takes_a_step(kind, tokenizer, tmp_path, device):
    trainer = trainer_of(kind, "llama", tokenizer, tmp_path)
    assert share_prefixes(trainer.model)
    rows = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, dict(rows))
    trainer.model.to(ACCELERATOR)
    on_device = {n: x.to(ACCELERATOR) if torch.is_tensor(x) else x for n, x in rows.items()}
    loss = trainer.compute_loss(trainer.model, on_device)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_grpo_samples_and_takes_the_step_of_the_cpu(tokenizer, tmp_path, monkeypatch, device):
    losses = []
    for place in (torch.device("cpu"), ACCELERATOR):
        trainer = grpo(tokenizer, tmp_path)
        assert share_prefixes(trainer.model)
        for state in (PartialState, AcceleratorState):
            monkeypatch.setitem(state._shared_state, "device", place)
        trainer.model.to(place).train()
        trainer.current_gradient_accumulation_steps = 1  # the training loop sets it
        prompts = trainer.train_dataset.select([0] * 4 + [2] * 4)["prompt"]
        torch.manual_seed(0)
        batch = trainer._prepare_inputs([{"prompt": prompt} for prompt in prompts])
        losses.append(trainer.compute_loss(trainer.model, batch))
        losses[-1].backward()
        assert losses[-1].device == batch["completion_ids"].device == place
        gradients = [p.grad for p in trainer.model.parameters() if p.requires_grad]
        assert all(gradient is not None for gradient in gradients)
    on_cpu, on_accelerator = (loss.item() for loss in losses)
    assert on_accelerator == pytest.approx(on_cpu, rel=1e-5)


@pytest.mark.parametrize(
    ("prompts", "per_batch"), [(PROMPTS, 3), (PROMPTS[1:], 1)], ids=["padded", "of one length"]
)
def test_the_host_waits_once_per_sampled_token(prompts, per_batch, tokenizer, device):
    """And once per batch for all log-probabilities; transformers reads a padded prompt's mask."""
    roles = roles_of(tokenizer)
    steps: list[int] = []
    roles.base.get_input_embeddings().register_forward_hook(lambda *_: steps.append(1))
    device.reset()
    sample(roles.base, tokenizer, prompts, max_completion_length=8, temperature=2.0, seed=1)
    assert len(steps) > 4
    assert device.syncs.total() == len(steps) + per_batch


def test_decoding_without_padding_takes_no_mask(tokenizer, device):
    roles = roles_of(tokenizer)
    device.reset()
    sample(roles.base, tokenizer, PROMPTS[1:], max_completion_length=6)
    assert set(device.attention) == {"causal", "none"}
    sample(roles.base, tokenizer, PROMPTS, max_completion_length=6)
    assert device.attention["dense"]


def test_below_float32_a_merged_policy_takes_the_launches_of_the_base(tokenizer, device):
    base = launches.decoding(device, tokenizer, launches.EVEN, None)
    merged = launches.decoding(device, tokenizer, launches.EVEN, "policy")
    unmerged = launches.decoding(device, tokenizer, launches.EVEN, "policy", dtypes=())
    assert merged == base
    assert base.syncs == unmerged.syncs == 1
    # PEFT launches eight more in each of a layer's seven linear layers.
    assert unmerged.per_layer == base.per_layer + 7 * 8
    assert unmerged.others == base.others


def test_one_batch_is_packed_once_for_all_roles(tokenizer, device):
    """Each role's pass compares the batch to the last one, which is one copy to the host."""
    roles = roles_of(tokenizer)
    ids, mask = batch(tokenizer)
    device.reset()
    with torch.no_grad():
        for role in (None, "policy", "value"):
            roles.last_hidden_states(role, ids, mask)
    assert device.syncs.total() == 3
    assert device.attention["dense"] + device.attention["causal"] == 3 * 2 * len(
        roles._packer(ids, mask).blocks
    )


def test_a_mixed_device_is_refused_wherever_it_is(tokenizer, device):
    roles = roles_of(tokenizer)
    ids, mask = batch(tokenizer)
    with pytest.raises(RuntimeError, match="of the CPU and of the accelerator"):
        roles.last_hidden_states("policy", ids.cpu(), mask)
