import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.models.loading import open_base
from rlhf_recipes.models.merging import ROUNDED, merged

IDS = torch.arange(3, 43).view(2, 20)


def peft_model(**changes):
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **changes}
    model = get_peft_model(open_base("tiny"), LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_bias": True},
        {"use_dora": True},
        {"target_modules": ["q_proj", "lm_head"]},  # the embeddings are the same weight
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns about tied weights
def test_a_merged_model_computes_the_same(changes):
    model = peft_model(**changes)
    expected, before = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    with merged(model, "default"):
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_weight_that_has_an_adapter_merged_is_not_merged_again():
    model = peft_model()
    expected = logits(model)
    with merged(model, "default"):
        with merged(model, "default"):
            torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    model.merge_adapter()
    with merged(model, "default"):
        pass
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_restored_after_an_error_and_after_a_pass_without_adapters():
    model = peft_model()
    expected = logits(model)
    with model.disable_adapter():
        base = logits(model)

    def fail():
        with model.disable_adapter():
            torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-4)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), merged(model, "default"):
        fail()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_below_float32_are_merged_if_asked_and_restored_bit_for_bit(dtype):
    model = peft_model()
    for parameter in model.parameters():
        if not parameter.requires_grad:  # PEFT keeps adapters in float32
            parameter.data = parameter.data.to(dtype)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    unmerged = logits(model).float()
    with merged(model, "default"):
        assert not layer.merged
    with merged(model, "default", ROUNDED):
        assert layer.merged
        # The sum is computed in float32 and rounded once.
        exact = before["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"].float()
        exact += layer.get_delta_weight("default")
        assert torch.equal(layer.base_layer.weight, exact.to(dtype))
        difference = (logits(model).float() - unmerged).norm() / unmerged.norm()
    assert 0 < difference < 0.02
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_quantized_weight_is_never_merged():
    """Four bits are packed into integers, to which nothing can be added."""
    model = peft_model()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.base_layer.weight = torch.nn.Parameter(
        layer.base_layer.weight.to(torch.uint8), requires_grad=False
    )
    with merged(model, "default", ROUNDED):
        assert not layer.merged
