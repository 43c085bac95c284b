from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.loading import base_path, open_base
from rlhf_recipes.models.logits import check_logits, logits_of
from rlhf_recipes.roles import Roles

IDS = torch.arange(3, 43).view(2, 20)
MASK = torch.ones(2, 20, dtype=torch.bool)
MASK[1, :6] = False  # left padding
COMPLETION = 7


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **changes})


def randomize(roles: Roles, role: str, seed: int) -> None:
    """Draw random weights for an adapter: with B = 0 every role would be the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if f".{role}." in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def four_roles() -> Roles:
    roles = Roles(open_base("tiny"))
    for seed, role in enumerate(("policy", "reference", "reward", "value")):
        roles.attach(role, lora(), trainable=role in ("policy", "value"))
        randomize(roles, role, seed)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(9))
    roles.attach_head("reward", weight, None, trainable=False)
    roles.attach_head("value", weight, torch.zeros(1), trainable=True)
    return roles


def one_role(source: Roles, role: str) -> Roles:
    """Copy one role to a model of its own, which sharing the base must equal."""
    alone = Roles(open_base("tiny"))
    alone.attach(role, lora(), trainable=True)
    weights = dict(source.base.named_parameters())
    with torch.no_grad():
        for name, parameter in alone.base.named_parameters():
            parameter.copy_(weights[name])
    if role in source.heads:
        head = source.heads[role]
        alone.attach_head(role, head.weight.detach(), head.bias.detach(), trainable=True)
    return alone


def trainable(roles: Roles) -> set[str]:
    return {name for name, parameter in roles.named_parameters() if parameter.requires_grad}


def loss_of(roles: Roles, role: str) -> torch.Tensor:
    output = roles(role, IDS, MASK, COMPLETION)
    return (output.values if role == "value" else output.logps).square().sum()


def test_only_policy_and_value_train_whatever_has_been_switched():
    roles = four_roles()
    before = trainable(roles)
    assert {name.split(".")[-2] for name in before if "lora" in name} == {"policy", "value"}
    assert {name for name in before if "lora" not in name} == {
        "heads.value.weight",
        "heads.value.bias",
    }
    for role in (None, "reward", "policy", "reference", "value"):
        with roles.use(role):
            assert trainable(roles) == before
            with roles.use(None), roles.merged("policy"):
                assert trainable(roles) == before
        assert trainable(roles) == before
        assert roles.active is None


def test_each_role_computes_what_a_model_of_its_own_computes():
    roles = four_roles()
    for role in ("policy", "reference"):
        shared, alone = (r(role, IDS, MASK, COMPLETION) for r in (roles, one_role(roles, role)))
        torch.testing.assert_close(shared.logps, alone.logps)
    shared, alone = (r("value", IDS, MASK, COMPLETION) for r in (roles, one_role(roles, "value")))
    torch.testing.assert_close(shared.values, alone.values)
    plain = open_base("tiny")(input_ids=IDS[:1]).logits[0, -COMPLETION - 1 : -1]
    hidden_states = roles.completion_hidden_states(None, IDS[:1], MASK[:1], COMPLETION)
    torch.testing.assert_close(logits_of(roles.base, hidden_states), plain)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradients_on_a_shared_base_equal_those_of_separate_models(checkpointing):
    """Checkpointing recomputes with the active adapter: a switch too early corrupts gradients."""
    roles = four_roles()
    if checkpointing is not None:
        roles.base.gradient_checkpointing_enable(checkpointing)
        roles.base.enable_input_require_grads()
    roles.train()
    for role in ("policy", "value"):
        with roles.use(role):
            loss_of(roles, role).backward()
        with torch.no_grad(), roles.use("reward"):  # like a rollout in between
            roles.scores("reward", IDS, MASK)
    gradients = {name: p.grad for name, p in roles.named_parameters() if p.requires_grad}
    for role in ("policy", "value"):
        alone = one_role(roles, role)
        with alone.use(role):
            loss_of(alone, role).backward()
        for name, parameter in alone.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(gradients.pop(name), parameter.grad)
    assert not gradients


@pytest.mark.parametrize("role", ["policy", "value"])
def test_computing_shared_layers_once_changes_neither_outputs_nor_gradients(role):
    """Only the second layer has adapters, so the first runs once for all roles."""
    roles = Roles(open_base("tiny"))
    for seed, name in enumerate(("policy", "value")):
        roles.attach(name, lora(layers_to_transform=[1]), trainable=True)
        randomize(roles, name, seed)
    roles.attach_head("value", torch.ones(1, 32), torch.zeros(1), trainable=True)
    assert roles.num_shared_layers == 1
    results = []
    for shared_hidden_states in (None, roles.shared_hidden_states(IDS, MASK)):
        roles.zero_grad()
        output = roles(role, IDS, MASK, COMPLETION, 0.7, shared_hidden_states)
        tensor = output.values if role == "value" else output.logps
        tensor.square().sum().backward()
        gradients = [p.grad.clone() for p in roles.parameters() if p.grad is not None]
        results.append((tensor.detach(), gradients))
    torch.testing.assert_close(results[1], results[0])
    assert len(results[0][1]) >= 4


def test_no_layer_is_shared_below_an_adapter_in_the_first_layer():
    roles = four_roles()
    assert roles.num_shared_layers == 0
    assert roles.shared_hidden_states(IDS, MASK) is None


def test_a_merged_role_computes_the_same_and_the_base_comes_back_bit_for_bit():
    roles = four_roles()
    before = {name: p.clone() for name, p in roles.base.named_parameters()}
    with torch.no_grad():
        expected = roles.completion_hidden_states("policy", IDS, MASK, COMPLETION)
        with roles.merged("policy") as base:
            merged = roles.completion_hidden_states("policy", IDS, MASK, COMPLETION)
            weights = dict(base.named_parameters())
            changed = [n for n, p in before.items() if not torch.equal(weights[n], p)]
    assert len(changed) == 4  # two layers of two target modules: no product is left to compute
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in roles.base.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_padding_does_not_change_a_role():
    roles = four_roles()
    together = roles("policy", IDS, MASK, COMPLETION).logps[1:]
    alone = roles("policy", IDS[1:, 6:], MASK[1:, 6:], COMPLETION).logps
    torch.testing.assert_close(together, alone)


def test_dropout_is_off_even_in_training():
    roles = Roles(open_base("tiny"))
    roles.attach("policy", lora(lora_dropout=0.5), trainable=True)
    randomize(roles, "policy", 0)
    roles.train()
    first, second = (roles("policy", IDS, MASK, COMPLETION).logps for _ in range(2))
    assert torch.equal(first, second)


def test_a_saved_role_comes_back_and_peft_reads_it_too(tmp_path):
    roles = four_roles()
    for role in ("policy", "reward"):
        roles.save_role(role, tmp_path / role)
    again = Roles(open_base("tiny"))
    again.attach_saved("policy", tmp_path / "policy", trainable=True)
    again.attach_saved("reward", tmp_path / "reward", trainable=False)
    logps = roles("policy", IDS, MASK, COMPLETION).logps
    assert torch.equal(again("policy", IDS, MASK, COMPLETION).logps, logps)
    scores = roles.scores("reward", IDS[:1], MASK[:1])
    assert torch.equal(again.scores("reward", IDS[:1], MASK[:1]), scores)

    policy = PeftModel.from_pretrained(open_base("tiny"), tmp_path / "policy")
    plain = policy(input_ids=IDS[:1]).logits.log_softmax(-1)[:, -COMPLETION - 1 : -1]
    chosen = plain.gather(-1, IDS[:1, -COMPLETION:, None]).squeeze(-1)
    torch.testing.assert_close(chosen, logps[:1])
    classifier = AutoModelForSequenceClassification.from_pretrained(
        base_path("tiny"), num_labels=1, dtype="float32"
    )
    reward = PeftModel.from_pretrained(classifier, tmp_path / "reward")
    torch.testing.assert_close(reward(input_ids=IDS[:1]).logits[0, 0], scores[0, -1])


def test_a_base_that_changes_its_logits_after_the_head_is_refused():
    base = open_base("tiny")
    check_logits(base)
    forward = base.forward
    base.forward = lambda **inputs: SimpleNamespace(logits=2 * forward(**inputs).logits)
    with pytest.raises(RecipeError, match="changes its logits after the head in an unknown way"):
        check_logits(base)


def test_dropout_kept_as_a_number_is_off_too():
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        dropout=0.5,
    )
    roles = Roles(OPTForCausalLM(config))
    roles.train()
    first, second = (roles(None, IDS, MASK, COMPLETION).logps for _ in range(2))
    assert torch.equal(first, second)


def test_a_role_that_trains_a_whole_module_is_refused():
    with pytest.raises(RecipeError, match=r"`modules_to_save: \['lm_head'\]`"):
        Roles(open_base("tiny")).attach("policy", lora(modules_to_save=["lm_head"]), trainable=True)
