"""Tensors that say they are on an accelerator and refuse to be mixed with the CPU's, as CUDA does.

They compute on the CPU. What Python calls is checked, not what torch does within a call.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

ACCELERATOR = torch.device("meta")
"""Any device but the CPU; no tensor here is really on it."""

MOVING = {"to", "cpu", "copy", "getitem", "setitem", "as_tensor", "tensor", "get"}
"""Calls that may see both devices: they copy, or take an index from the CPU."""

ARITHMETIC = {"add", "sub", "mul", "div", "truediv", "rsub", "radd", "rmul", "pow", "where"}
"""Calls in which CUDA takes a scalar tensor of the CPU too."""


class OnAccelerator(torch.Tensor):
    """A tensor of the CPU that says it is on the accelerator."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return ACCELERATOR


class PretendDevice(TorchFunctionMode):
    """Within it `device=` and `.to()` know the accelerator, and mixed calls are refused."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "").strip("_")
        found = list(tensors((args, kwargs)))
        there = [t for t in found if isinstance(t, OnAccelerator)]
        here = [t for t in found if not isinstance(t, OnAccelerator)]
        scalars = name in ARITHMETIC and all(t.dim() == 0 for t in here)
        if there and here and name not in MOVING and not scalars:
            raise RuntimeError(f"{name} was given tensors of the CPU and of the accelerator")
        device = kwargs.pop("device", None)
        if name == "to" and isinstance(args[1], torch.device):
            device, args = args[1], (args[0], *args[2:])
        result = function(*args, **kwargs)
        if not isinstance(result, torch.Tensor):
            return result
        if device is None:
            device = ACCELERATOR if there and name != "cpu" else "cpu"
        on_it = torch.device(device) == ACCELERATOR
        return result.as_subclass(OnAccelerator if on_it else torch.Tensor)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
