"""Hold what is trained in float32, whatever precision the base is in."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer


def train_in_float32(trainer: Trainer) -> None:
    """Cast a trainer's trainable weights to float32, and FSDP's outputs and reductions.

    On a base in lower precision TRL and PEFT leave LoRA or the scalar head in bfloat16, in which
    most steps of AdamW at a usual learning rate are smaller than half the last bit of a weight, and
    are lost. Under FSDP accelerate has each module round its outputs to the precision of the
    computation: a completion's log-probability would be a bfloat16, whose neighbors at 200 nats are
    1 nat apart.

    DeepSpeed is left alone: with `bf16` it trains a float32 copy of the weights, and saves rounded
    ones.
    """
    assert trainer.model is not None
    if trainer.is_deepspeed_enabled:
        return
    for module in trainer.model.modules():
        lower = [p for p in module.parameters(recurse=False) if p.requires_grad]
        lower = [p for p in lower if p.dtype != torch.float32]
        for parameter in lower:
            parameter.data = parameter.data.float()
        if lower and isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_in_precision_of_weight)
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        if isinstance(policy, MixedPrecisionPolicy):
            plugin.mixed_precision_policy = replace(
                policy, reduce_dtype=torch.float32, output_dtype=torch.float32
            )


def _in_precision_of_weight(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Cast a linear layer's input: without autocast a base hands on its own precision."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return tuple(x.to(weight.dtype) for x in inputs)
