"""Tell early whether weights will be sharded, and open models that must not be."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from rlhf_recipes.errors import RecipeError

LAUNCHED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Environment variables that `accelerate launch` sets for its processes."""

_deepspeed_config: list[HfDeepSpeedConfig] = []


def shards_weights(args: TrainingArguments) -> bool:
    """Return whether FSDP or DeepSpeed will shard the weights, before a trainer is made.

    accelerate's own `distributed_type` is FSDP only once a trainer has made its Accelerator.
    """
    return bool(args.deepspeed or args.fsdp or sharding_launched())


def sharding_launched() -> bool:
    """Return whether `accelerate launch` started this process for FSDP or DeepSpeed."""
    return any(map(parse_flag_from_env, LAUNCHED))


def check_unsharded(args: TrainingArguments) -> None:
    """Raise RecipeError if PPO is run under DeepSpeed or FSDP.

    Both were tried on two CPU processes. DeepSpeed steps the optimizer at every backward pass, and
    a PPO step has two. With the first step held back, ZeRO-2 takes the step that one process takes
    (4e-8 apart). But transformers then restores DeepSpeed's checkpoint in place of PPO's, so that a
    resumed run would have no rollout, and writes the whole base into it. All that ZeRO-2 shards is
    the gradients and moments of two adapters. FSDP2 replaces the parameters that the roles switch:
    the first loss has no gradient. Sampling would wait for a process that has finished.
    """
    if shards_weights(args):
        raise RecipeError(
            "PPO does not run under DeepSpeed or FSDP. Use accelerate_configs/single.yaml or "
            "multi_gpu.yaml; a base too large for one GPU fits with `load_in_4bit: true`."
        )


@contextmanager
def unsharded() -> Iterator[None]:
    """Open models unsharded on each process, even under DeepSpeed's ZeRO-3.

    With ZeRO-3, `from_pretrained` partitions every model over all processes, and each use of its
    weights waits for all of them. A model that only some processes use must not wait.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    config = deepspeed_config()
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        # transformers holds a weak reference only.
        _deepspeed_config[:] = [HfDeepSpeedConfig(config)]
