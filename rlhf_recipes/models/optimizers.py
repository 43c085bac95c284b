"""Check a run's optimizer and learning-rate schedule before there is a model to train."""

from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, get_scheduler

from rlhf_recipes.errors import RecipeError


def check_optimizer(training: Any, model: PreTrainedModel) -> None:
    """Raise RecipeError if the recipe's optimizer or schedule cannot be made.

    The check makes an optimizer for a single parameter and a schedule of ten steps.

    Args:
        training: The stage's trainer arguments.
        model: The base without weights, which some optimizers inspect.
    """
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(training, model)
        if kind.__module__.startswith("torch."):
            kind([torch.nn.Parameter(torch.zeros(1))], **settings)
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(
            f"`optim` is {training.optim.value} and `optim_args` {training.optim_args}, which "
            f"cannot be made: {' '.join(str(error).split())} Install the package that it names, or "
            "choose another (`adamw_torch_fused` is the default)."
        ) from error
    placeholder = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(
            training.lr_scheduler_type,
            placeholder,
            num_warmup_steps=training.get_warmup_steps(10),
            num_training_steps=10,
            scheduler_specific_kwargs=dict(training.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"`lr_scheduler_type` is {training.lr_scheduler_type.value} and `lr_scheduler_kwargs` "
            f"{training.lr_scheduler_kwargs}, which do not go together: {error}. Give the settings "
            "of that schedule as `lr_scheduler_kwargs`, or use `linear` or `cosine` without any."
        ) from error


def check_warmup(training: Any, steps: int) -> None:
    """Raise RecipeError if the run ends before its warmup does."""
    warmup = training.get_warmup_steps(steps)
    if training.lr_scheduler_type != "constant" and warmup > steps:
        raise RecipeError(
            f"`warmup_steps` is {warmup}, and the run has {steps} steps, so its learning rate "
            "never reaches `learning_rate`. Give fewer; below 1 it is a fraction of all steps."
        )
