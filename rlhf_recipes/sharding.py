"""Find out early whether the weights are to be sharded, and open helper models that are not."""

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
"""Variables in which `accelerate launch` tells its processes what its configuration asks for."""

_kept: list[HfDeepSpeedConfig] = []


def shards_weights(args: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed will take over weights and steps, asked before a trainer is made.

    accelerate's own `distributed_type` says FSDP only once a trainer has made its Accelerator.
    """
    return bool(args.deepspeed or args.fsdp or any(map(parse_flag_from_env, LAUNCHED)))


def check_unsharded(args: TrainingArguments) -> None:
    """Raise RecipeError under DeepSpeed and FSDP, where steps and weights are not PPO's.

    DeepSpeed steps the optimizer at every backward pass, and a PPO step has two; FSDP replaces the
    parameters that the roles switch, and sampling would wait for a process that has finished.
    """
    if shards_weights(args):
        raise RecipeError(
            "PPO does not run under DeepSpeed or FSDP. Use accelerate_configs/single.yaml or "
            "multi_gpu.yaml; a base too large for one GPU fits with `load_in_4bit: true`."
        )


@contextmanager
def unsharded() -> Iterator[None]:
    """Open models whole on each process, under DeepSpeed's ZeRO-3 too.

    There `from_pretrained` partitions every model over all processes, and each use of its weights
    waits for all of them. A model that scores, or that one process reviews, must not.
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
        _kept[:] = [HfDeepSpeedConfig(config)]
