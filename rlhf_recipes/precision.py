"""Hold what is trained in float32, whatever precision the base is in."""

from dataclasses import replace

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer


def train_in_float32(trainer: Trainer) -> None:
    """Cast a trainer's trainable weights to float32, and FSDP's outputs and reductions.

    On a quantized base TRL casts LoRA and the scalar head to bfloat16, in which most steps of AdamW
    at a usual learning rate are smaller than half the last bit of a weight, and are lost. Under
    FSDP accelerate has each module round its outputs to the precision of the computation: a
    completion's log-probability would be a bfloat16, whose neighbors at 200 nats are 1 nat apart.

    DeepSpeed is left alone: its optimizer has a float32 copy of the weights.
    """
    assert trainer.model is not None
    if trainer.is_deepspeed_enabled:
        return
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        policy = plugin.mixed_precision_policy
        if isinstance(policy, MixedPrecisionPolicy):
            plugin.mixed_precision_policy = replace(
                policy, reduce_dtype=torch.float32, output_dtype=torch.float32
            )
