import pytest
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from trl import GRPOConfig

from rlhf_recipes.generation.grpo import rollout_func_for
from rlhf_recipes.sharding import shards_weights, unsharded

ZERO_3 = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}


def grpo(folder, **changes) -> GRPOConfig:
    return GRPOConfig(output_dir=str(folder), bf16=False, use_cpu=True, **changes)


@pytest.mark.parametrize("launched", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharding_is_detected_before_a_trainer_is_made(launched, tmp_path, monkeypatch):
    args = grpo(tmp_path)
    assert not shards_weights(args)
    assert rollout_func_for(args) is not None
    monkeypatch.setenv(launched, "true")
    assert shards_weights(args)
    assert rollout_func_for(args) is None


def test_unsharded_changes_nothing_without_zero_3():
    with unsharded():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()


def test_models_are_opened_outside_zero_3_which_is_on_again_afterwards():
    pytest.importorskip("deepspeed", reason="ZeRO-3 is DeepSpeed's, which is not installed")
    config = HfDeepSpeedConfig(ZERO_3)
    try:
        assert is_deepspeed_zero3_enabled()
        with unsharded():
            assert not is_deepspeed_zero3_enabled()
        assert is_deepspeed_zero3_enabled()
        assert deepspeed_config() == config.config
    finally:
        unset_hf_deepspeed_config()
