"""Every kind of adapter that PEFT writes computes the same as a role as in PEFT, or is refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.adapters import WEIGHTS, read_adapter
from rlhf_recipes.models.loading import Base, Precision, open_base, open_tokenizer
from rlhf_recipes.roles import Roles

IDS = torch.arange(5, 25)[None]
MASK = torch.ones_like(IDS, dtype=torch.bool)
LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Save a base with biases and an untied head, which gives adapters more weights to change."""
    folder = str(tmp_path_factory.mktemp("base"))
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            attention_bias=True,
            initializer_range=0.3,
        )
    ).save_pretrained(folder)
    open_tokenizer("tiny").save_pretrained(folder)
    return folder


def save(base: str, folder: Path, config) -> torch.nn.Module:
    """Save a PEFT model with random adapter weights, as PEFT saves it."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about what it saves with the adapter
        model = get_peft_model(open_base(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.eval().save_pretrained(folder)
    return model


def logits(roles: Roles, role: str | None) -> torch.Tensor:
    with roles.use(role), torch.no_grad():
        return roles.base.get_output_embeddings()(roles.last_hidden_states(role, IDS, MASK))


def edit(folder: Path, **changes) -> None:
    """Change settings of a saved adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


RIGHT = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "some layers": {"layers_to_transform": [1]},
    "a regular expression": {"target_modules": r".*\.1\..*(q|v)_proj"},
    "excluded": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "lora bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("settings", RIGHT.values(), ids=RIGHT)
def test_a_lora_role_computes_what_peft_computes_and_does_not_change_the_base(
    settings, base, tmp_path
):
    model = save(base, tmp_path, LoraConfig(**LORA | settings))
    roles = Roles(open_base(base))
    before = logits(roles, None)
    for role in ("policy", "reference"):
        roles.attach_saved(role, tmp_path, trainable=role == "policy")
    with torch.no_grad():
        peft = model(IDS).logits
    assert not torch.equal(logits(roles, "policy"), before)
    torch.testing.assert_close(logits(roles, "policy"), peft)
    torch.testing.assert_close(logits(roles, "reference"), peft)
    assert torch.equal(logits(roles, None), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_dtype_are_converted_to_float32(dtype, base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    file = tmp_path / WEIGHTS
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(narrow, file)
    roles = Roles(open_base(base))
    roles.attach_saved("policy", tmp_path, trainable=True)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    weight = roles.base.model.layers[0].self_attn.q_proj.lora_A["policy"].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, narrow[name].float())


MORE_THAN_LORA: dict[str, dict[str, Any]] = {
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "bias: all": {"bias": "all"},
    "bias: lora_only": {"bias": "lora_only"},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5, 6]},
    "init_lora_weights: pissa": {"init_lora_weights": "pissa"},
    "init_lora_weights: olora": {"init_lora_weights": "olora"},
}


@pytest.mark.parametrize("name", MORE_THAN_LORA)
def test_an_adapter_that_is_more_than_lora_is_refused_by_name(name, base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA | MORE_THAN_LORA[name]))
    roles = Roles(open_base(base))
    before = logits(roles, None)
    with pytest.raises(RecipeError, match="more than LoRA") as refused:
        roles.attach_saved("policy", tmp_path, trainable=False)
    key = next(iter(MORE_THAN_LORA[name]))
    assert f"`{key}: " in str(refused.value) and "merge_and_unload" in str(refused.value)
    assert torch.equal(logits(roles, None), before)


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["IA3", "PREFIX_TUNING"],
)
def test_other_types_of_adapters_are_refused_by_name(config, base, tmp_path):
    save(base, tmp_path, config)
    with pytest.raises(RecipeError, match=f"of type {config.peft_type.value}, and only LoRA"):
        read_adapter(tmp_path)


def test_a_setting_of_a_newer_peft_is_not_ignored(base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    edit(tmp_path, use_something_new=None)
    read_adapter(tmp_path)
    edit(tmp_path, use_something_new=True)
    with pytest.raises(RecipeError, match="`use_something_new: True`"):
        read_adapter(tmp_path)


def without_one(tensors):
    return dict(sorted(tensors.items())[1:])


def with_another(tensors):
    return tensors | {
        "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)
    }


def with_nan(tensors):
    return {name: tensor.fill_(torch.nan) for name, tensor in tensors.items()}


def with_whole_numbers(tensors):
    return {name: tensor.to(torch.int8) for name, tensor in tensors.items()}


def of_another_rank(tensors):
    return {name: torch.ones(7, 7) for name in tensors}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_one, "no weights for layers that its configuration adapts"),
        (with_another, "weights for layers that the base lacks"),
        (with_nan, "not of finite numbers"),
        (with_whole_numbers, "not of finite numbers"),
        (of_another_rank, "does not fit"),
        (lambda _: {}, "no LoRA weights"),
    ],
    ids=["missing", "extra", "NaN", "int8", "shape", "empty"],
)
def test_weights_that_do_not_fit_are_refused(change, sentence, base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    save_file(change(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    roles = Roles(open_base(base))
    before = logits(roles, None)
    with pytest.raises(RecipeError, match=sentence):
        roles.attach_saved("policy", tmp_path, trainable=False)
    assert torch.equal(logits(roles, None), before)


def test_a_base_weight_saved_with_an_adapter_must_equal_the_base_s(base, tmp_path):
    """PEFT saves embeddings that are adapted or resized, and would load them into the base."""
    save(base, tmp_path, LoraConfig(**LORA | {"target_modules": ["q_proj", "embed_tokens"]}))
    tensors = load_file(tmp_path / WEIGHTS)
    (name,) = (name for name in tensors if "lora_" not in name)
    tensors[name][7, 3] += 1e-3
    save_file(tensors, tmp_path / WEIGHTS)
    roles = Roles(open_base(base))
    before = logits(roles, None)
    with pytest.raises(RecipeError, match=r"another `.*embed_tokens.* than the base"):
        roles.attach_saved("policy", tmp_path, trainable=False)
    assert torch.equal(logits(roles, None), before)


def test_a_change_of_one_value_of_the_base_is_noticed(base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    roles = Roles(open_base(base))
    roles.attach_saved("policy", tmp_path, trainable=False)
    with torch.no_grad():
        roles.base.model.layers[1].self_attn.q_proj.base_layer.bias[3] += 1e-6
    with pytest.raises(RecipeError, match=r"`policy` changed the shared base .*q_proj\.bias"):
        roles.load_role("policy", tmp_path)


def test_a_pickle_is_not_opened(base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(RecipeError, match="is a pickle"):
        read_adapter(tmp_path)


def test_damaged_files_are_refused(base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    file = tmp_path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(RecipeError, match="is damaged"):
        read_adapter(tmp_path)
    file.unlink()
    with pytest.raises(RecipeError, match="has no weights"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": ')
    with pytest.raises(RecipeError, match="is not JSON"):
        read_adapter(tmp_path)


def test_an_adapter_of_another_architecture_or_size_is_refused(base, tmp_path):
    save("tiny", tmp_path, LoraConfig(**LORA | {"layers_to_transform": None}))
    config = LlamaConfig(
        vocab_size=259, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    with pytest.raises(RecipeError, match="does not fit"):
        Roles(LlamaForCausalLM(config)).attach_saved("policy", tmp_path, trainable=False)
    edit(tmp_path, target_modules=["c_attn"])
    with pytest.raises(RecipeError, match=r"does not fit .*c_attn"):
        Roles(open_base(base)).attach_saved("policy", tmp_path, trainable=False)
    with pytest.raises(RecipeError, match=r"was trained on .*tiny.* but the recipe's base is"):
        read_adapter(tmp_path).check_base(Base(base))


def test_a_reward_model_is_no_policy_and_a_policy_is_no_reward_model(base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    policy = read_adapter(tmp_path)
    policy.check_policy()
    with pytest.raises(RecipeError, match="without a scalar head"):
        policy.check_head()
    roles = Roles(open_base(base))
    roles.attach_saved("reward", policy, trainable=False)
    roles.attach_head("reward", torch.ones(1, 32), None, trainable=False)
    roles.save_role("reward", tmp_path / "reward")
    reward = read_adapter(tmp_path / "reward")
    reward.check_head()
    with pytest.raises(RecipeError, match="writes no text"):
        reward.check_policy()


def test_the_precision_of_the_base_is_read_from_the_run(base, tmp_path):
    save(base, tmp_path / "run", LoraConfig(**LORA))
    assert read_adapter(tmp_path / "run").precision is None
    save(base, tmp_path / "run" / "checkpoint-5" / "value", LoraConfig(**LORA))
    recipe = "dtype: bfloat16\nload_in_4bit: true\nlearning_rate: 1.0e-05\n"
    (tmp_path / "run" / "recipe.yaml").write_text(recipe)
    expected = Precision("bfloat16", load_in_4bit=True)
    assert read_adapter(tmp_path / "run").precision == expected
    assert read_adapter(tmp_path / "run" / "checkpoint-5" / "value").precision == expected
    assert str(expected) == "bfloat16, quantized to 4 bits (nf4)"


def test_the_fingerprint_is_of_weights_configuration_and_tokenizer(base, tmp_path):
    save(base, tmp_path, LoraConfig(**LORA))
    first = read_adapter(tmp_path).fingerprint
    assert read_adapter(tmp_path).fingerprint == first
    edit(tmp_path, lora_alpha=3)
    second = read_adapter(tmp_path).fingerprint
    tensors = load_file(tmp_path / WEIGHTS)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    third = read_adapter(tmp_path).fingerprint
    open_tokenizer("tiny").save_pretrained(tmp_path)
    assert len({first, second, third, read_adapter(tmp_path).fingerprint}) == 4


def test_adapters_have_the_same_weights_whatever_else_differs(base, tmp_path):
    save(base, tmp_path / "one", LoraConfig(**LORA))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    open_tokenizer("tiny").save_pretrained(tmp_path / "two")
    one, two = read_adapter(tmp_path / "one"), read_adapter(tmp_path / "two")
    assert one.has_weights_of(two) and one.fingerprint != two.fingerprint
    tensors = load_file(tmp_path / "two" / WEIGHTS)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, tmp_path / "two" / WEIGHTS)
    assert not one.has_weights_of(read_adapter(tmp_path / "two"))
