"""Dropout of a model, whether a module or a number that a layer keeps, and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def has_dropout(model: nn.Module) -> bool:
    """Return whether any dropout probability of a model is above 0."""
    return any(
        module.p > 0
        if isinstance(module, nn.Dropout)
        else any(getattr(module, name) > 0 for name in _probabilities(module))
        for module in model.modules()
    )


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0.

    TRL's `disable_dropout` covers modules only. OPT and XGLM keep numbers, so their policy and
    reference would compute different activations for the same text.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _probabilities(module):
            setattr(module, name, 0.0)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, then back into the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _probabilities(module: nn.Module) -> list[str]:
    """List a module's numbers such as `attention_dropout`, `layerdrop` or `attn_pdrop`."""
    return [name for name, value in vars(module).items() if "drop" in name and type(value) is float]
