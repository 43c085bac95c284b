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

LAUNCHED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables in which `accelerate launch` tells its processes what its configuration asks for."""

_kept: list[HfDeepSpeedConfig] = []


def shards_weights(args: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed will take over weights and steps, asked before a trainer is made.

    accelerate's own `distributed_type` says FSDP only once a trainer has made its Accelerator.
    """
    return bool(args.deepspeed or args.fsdp or any(map(parse_flag_from_env, LAUNCHED)))


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
