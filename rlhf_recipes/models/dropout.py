"""Dropout of a model, wherever its architecture keeps the probability."""

from torch import nn


def has_dropout(model: nn.Module) -> bool:
    """Return whether a layer drops activations, as a module of torch or by a number it keeps."""
    return any(
        module.p > 0
        if isinstance(module, nn.Dropout)
        else any(getattr(module, name) > 0 for name in _probabilities(module))
        for module in model.modules()
    )


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0.

    TRL's `disable_dropout` knows the modules alone. OPT and XGLM keep numbers: their policy and its
    reference would see different activations of one text.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _probabilities(module):
            setattr(module, name, 0.0)


def _probabilities(module: nn.Module) -> list[str]:
    """Names of a module's numbers such as `attention_dropout`, `layerdrop` or `attn_pdrop`."""
    return [name for name, value in vars(module).items() if "drop" in name and type(value) is float]
