import pytest
import torch

from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.prefix_sharing.forward import share_prefixes
from tests.prefix_sharing.test_forward import grpo, randomize

FIRST = {"num_iterations": 2, "loss_type": "grpo", "max_steps": 1}
"""Two updates per rollout, so that TRL computes old log-probabilities for a ratio."""


@pytest.mark.parametrize("trained", [False, True], ids=["a new adapter", "a trained adapter"])
def test_below_float32_the_ratio_starts_at_1_though_the_sampler_is_merged(trained, tmp_path):
    """Advantages sum to 0 over a group, so the loss at ratio 1 is beta times the KL."""
    beta = 0.0 if trained else 0.1
    trainer = grpo(open_tokenizer("tiny"), tmp_path, beta=beta, **FIRST)
    if trained:
        randomize(trainer.model)
    for parameter in trainer.model.parameters():
        if not parameter.requires_grad:  # PEFT keeps adapters in float32
            parameter.data = parameter.data.to(torch.bfloat16)
    share_prefixes(trainer.model)
    base = trainer.model.get_base_model()
    before = {n: p.clone() for n, p in base.named_parameters() if "lora_" not in n}
    merged = []
    layer = base.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda layer, _: merged.append(layer.merged))
    trainer.train()
    first = trainer.state.log_history[0]
    assert True in merged and False in merged  # sampled with, trained without
    assert first["loss"] == pytest.approx(0, abs=1e-6)
    assert trained or first["kl"] == 0
    after = dict(base.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("merge", [True, False])
def test_merging_below_float32_is_an_option(merge, tmp_path):
    trainer = grpo(open_tokenizer("tiny"), tmp_path)
    base = trainer.model.get_base_model().to(torch.bfloat16)
    merged = []
    layer = base.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda layer, _: merged.append(layer.merged))
    rollout = rollout_func_for(trainer.args, merge=merge)
    rollout(list(trainer.train_dataset["prompt"]), trainer)
    assert set(merged) == {merge}
