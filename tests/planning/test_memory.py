import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rlhf_recipes.models.loading import Precision
from rlhf_recipes.planning.memory import (
    MEASURING,
    SAMPLING,
    Architecture,
    Memory,
    activation_bytes,
    architecture,
    item_bytes,
    kv_cache_bytes,
    logits_bytes,
    merged_bytes,
    optimizer_bytes,
    tile_bytes,
    weight_bytes,
)

# PEFT says that GPT-2's Conv1D stores its weight transposed, and goes on:
# https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/layer.py
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")

LLAMA = LlamaConfig(
    vocab_size=101,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)
GPT2 = GPT2Config(
    vocab_size=101, n_embd=64, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0, n_positions=64
)
BATCH, LENGTH = 4, 32
TOKENS = BATCH * LENGTH


def saved_for_backward(config, checkpointing):
    """Bytes of distinct tensors, except parameters, that autograd saves in a forward pass."""
    base = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor  # referenced: no address is reused
        return tensor

    ids = torch.randint(0, 100, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base.base_model(ids, use_cache=False)
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in saved.items()
        if address not in parameters
    )


def test_the_sizes_of_a_decoder_are_read_from_its_configuration():
    assert architecture(LLAMA) == Architecture(4, 64, 192, 32, 101)
    assert architecture(GPT2) == Architecture(4, 64, 256, 64, 101)


@pytest.mark.parametrize(("config", "most"), [(LLAMA, 1.1), (GPT2, 1.6)], ids=["llama", "gpt2"])
def test_activations_are_about_what_autograd_saves(config, most):
    estimate = activation_bytes(architecture(config), TOKENS, 4, checkpointing=False)
    assert 1 <= saved_for_backward(config, checkpointing=False) / estimate <= most


def test_with_checkpointing_only_the_input_of_a_layer_is_saved():
    """The estimate includes one more layer, which the backward pass recomputes."""
    sizes = architecture(LLAMA)
    one_layer = activation_bytes(sizes, TOKENS, 4, checkpointing=False) // sizes.num_layers
    estimate = activation_bytes(sizes, TOKENS, 4, checkpointing=True) - one_layer
    assert estimate == TOKENS * sizes.num_layers * sizes.hidden_size * 4
    assert 1 <= saved_for_backward(LLAMA, checkpointing=True) / estimate <= 1.5


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_kv_cache_is_that_of_a_forward_pass(config):
    model = AutoModelForCausalLM.from_config(config)
    cache = model(torch.ones(BATCH, LENGTH, dtype=torch.long)).past_key_values
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(architecture(config), TOKENS, 4) == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_model(dtype):
    model = AutoModelForCausalLM.from_config(LLAMA, dtype=dtype)
    size = sum(p.nbytes for p in model.parameters())
    assert weight_bytes(model, dtype.itemsize, None) == size


def test_quantization_shrinks_the_linear_layers_but_not_the_lm_head():
    # Weights per layer: q and o 64x64, k and v 32x64, three of the MLP 192x64: 49,152. At four bits
    # and half a bit for the scales they take 27,648 bytes.
    model = AutoModelForCausalLM.from_config(LLAMA)
    linear = 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 192 * 64)
    assert linear == 4 * 49_152
    others = sum(p.numel() for p in model.parameters()) - linear
    assert weight_bytes(model, 2, 4) == 4 * 27_648 + 2 * others


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_merging_copies_the_weights_under_the_largest_adapter(config):
    model = AutoModelForCausalLM.from_config(config)
    one = "q_proj" if config is LLAMA else "c_attn"
    adapters = [LoraConfig(r=2, target_modules=names) for names in ([one], "all-linear")]
    wrapped = get_peft_model(copy.deepcopy(model), adapters[1])
    named = wrapped.named_parameters()
    copied = 4 * sum(p.numel() for name, p in named if "base_layer.weight" in name)
    assert merged_bytes(model, adapters, Precision()) == copied
    assert 0 < merged_bytes(model, adapters[:1], Precision()) < copied
    assert merged_bytes(model, [], Precision()) == 0


def test_nothing_is_merged_below_float32():
    model = AutoModelForCausalLM.from_config(LLAMA)
    all_linear = LoraConfig(target_modules="all-linear")
    for precision in (Precision("bfloat16"), Precision(load_in_4bit=True)):
        assert merged_bytes(model, [all_linear], precision) == 0


def test_the_optimizer_state_has_the_size_of_adams():
    weight = torch.nn.Parameter(torch.zeros(1000))
    weight.grad = torch.ones(1000)
    adam = torch.optim.AdamW([weight])
    adam.step()
    state = adam.state[weight]
    assert optimizer_bytes(1000, "adamw_torch", 4) == state["exp_avg"].nbytes * 2
    assert optimizer_bytes(1000, "adamw_bnb_8bit", 4) == 2000
    assert optimizer_bytes(1000, "sgd", 4) == 0


def test_logits_are_counted_three_times_in_float32():
    assert logits_bytes(architecture(LLAMA), 10) == 10 * 101 * 4 * 3


def test_a_tile_of_logits_has_at_most_4096_tokens_and_32768_words():
    """https://github.com/huggingface/trl/blob/v1.16.0/trl/kernels/chunked_logprob.py"""
    small, large = Architecture(1, 1, 1, 1, 101), Architecture(1, 1, 1, 1, 151936)
    assert tile_bytes(small, 10) == 10 * 101 * 4 * 3
    assert tile_bytes(large, 9000) == 4096 * 32768 * 4 * 3


def test_the_dtype_auto_is_that_of_the_model():
    assert [item_bytes(d, torch.bfloat16) for d in ("float32", "auto", None)] == [4, 2, 2]
    assert item_bytes("auto", None) == 4


def test_the_peak_is_persistent_memory_and_the_larger_of_training_and_sampling():
    assert Memory(1, 2, 4, 8, activations=100, logits=10, kv_cache=50, merged=5).peak == 15 + 110
    assert Memory(1, 2, 4, 8, activations=10, logits=10, kv_cache=50, merged=5).peak == 15 + 55
    phases = (SAMPLING, MEASURING)
    assert Memory(1, 2, logits=20, kv_cache=10, merged=5, phases=phases).peak == 3 + 25
    assert Memory(weights=3, adapters=0).by_component() == {"weights": 3, "peak": 3}
