"""A pretend accelerator, which refuses mixed devices as CUDA does and counts launches and syncs.

Its tensors say that they are on `ACCELERATOR` and compute on the CPU. Every operation of torch on
them is seen, whoever calls it. A count is not a time, and two things are simpler than on CUDA:
`scaled_dot_product_attention` is one launch and its backward pass another, and every other
operation that makes new data is one.
"""

import contextlib
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

ACCELERATOR = torch.device("meta")
"""Any device but the CPU; no tensor here is really on it."""

ATEN = torch.ops.aten

MIXING = {
    ATEN._to_copy.default,
    ATEN.copy_.default,
    *(ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default),
    ATEN._index_put_impl_.default,
}
"""Operations that may see both devices: they copy, or take an index from the CPU."""

SYNCS = {
    ATEN._local_scalar_dense.default,  # item, tolist, bool, int and float
    *(ATEN.nonzero.default, ATEN.masked_select.default, ATEN.equal.default),
    *(ATEN._unique2.default, ATEN.repeat_interleave.Tensor),
}
"""Operations that wait for the accelerator, because the host needs their result."""

NO_LAUNCH = {
    *(ATEN.detach.default, ATEN.empty.memory_format, ATEN.empty_like.default),
    ATEN.new_empty.default,
}
"""Operations that compute nothing, beside views."""


class PretendTensor(torch.Tensor):
    """A tensor of the CPU, `held`, that says it is on the accelerator."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ACCELERATOR,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @property  # type: ignore[override]
    def data(self) -> "PretendTensor":
        return PretendTensor(self.held)

    @data.setter
    def data(self, value: "PretendTensor") -> None:
        self.held = value.held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise RuntimeError(f"{func} was called outside of `PretendDevice`")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of the accelerator has no array: copy it to the CPU first")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held!r})"


class PretendGenerator(torch.Generator):
    """A generator of the CPU that says it is on the device that it was made for."""

    def __new__(cls, device: torch.device | str = "cpu") -> "PretendGenerator":
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.place = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def manual_seed(self, seed: int) -> "PretendGenerator":
        super().manual_seed(seed)
        return self


class PretendDevice(TorchDispatchMode):
    """Context in which `ACCELERATOR` is a device like another.

    Attributes:
        launches: Number of operations that a kernel would be launched for.
        syncs: Number of times that the host waits for the accelerator, by file and line: for what
            it needs to know, and for a copy that was not asked for with `non_blocking=True`.
        attention: Number of attention calls by mask: "dense", "causal" or "none".
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.syncs: Counter[str] = Counter()
        self.attention: Counter[str] = Counter()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "PretendDevice":
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch, "Generator", PretendGenerator)
        autocast = torch.is_autocast_enabled
        patch.setattr(
            torch,
            "is_autocast_enabled",
            lambda device_type="cpu": device_type != ACCELERATOR.type and autocast(device_type),
        )
        # `module.to(ACCELERATOR)` then keeps its parameters, as on a real device.
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        super().__enter__()
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        super().__exit__(*error)

    def reset(self) -> None:
        """Set all counts to 0."""
        self.launches = 0
        self.syncs.clear()
        self.attention.clear()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
        scalars = torch.Tag.pointwise in function.tags and all(t.dim() == 0 for t in here)
        if function not in MIXING and not scalars:
            _check_one_device(function, there, here)
        device = kwargs.get("device")
        to_it = bool(there) if device is None else torch.device(device) == ACCELERATOR
        waits = not kwargs.get("non_blocking", False)
        self._count(function, args, len(there), len(here), to_it=to_it, waits=waits)
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not to_it or not isinstance(result, torch.Tensor | list | tuple):
            return result
        result = tree_map(_wrapped, result)
        if there:
            return return_and_correct_aliasing(function, args, kwargs, result)
        return result

    def _count(self, function, args, there: int, here: int, *, to_it: bool, waits: bool) -> None:
        returns = function._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if function is ATEN._to_copy.default:
            syncs, launches = (waits or not to_it) and there != to_it, there and to_it
        elif function is ATEN.copy_.default:
            to_host = not isinstance(args[0], PretendTensor)
            syncs, launches = there == 1 and (waits or to_host), there == 2
        elif function is ATEN.index.Tensor:
            by_mask = any(index is not None and index.dtype == torch.bool for index in args[1])
            syncs, launches = there and (by_mask or here), there
        else:
            syncs = there and function in SYNCS
            launches = (there or to_it) and not (is_view or function in NO_LAUNCH | SYNCS)
        self.launches += bool(launches)
        if syncs:
            self.syncs[_place()] += 1


class _Calls(TorchFunctionMode):
    """The calls that have to be seen before torch takes them apart."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is scaled_dot_product_attention and isinstance(args[0], PretendTensor):
            mask = "causal" if kwargs.get("is_causal") else "none"
            if kwargs.get("attn_mask") is not None:
                _check_one_device(function, [*args], [kwargs["attn_mask"]])
                mask = "dense"
            self.device.attention[mask] += 1
            return _Attention.apply(self.device, *args, kwargs)
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        return function(*args, **kwargs)


class _Attention(torch.autograd.Function):
    """Attention by the CPU's kernel: one launch, and one in the backward pass."""

    @staticmethod
    def forward(context, device, query, key, value, kwargs):
        context.device, context.inputs = device, (query.held, key.held, value.held)
        context.kwargs = {name: _held(argument) for name, argument in kwargs.items()}
        device.launches += 1
        return PretendTensor(scaled_dot_product_attention(*context.inputs, **context.kwargs))

    @staticmethod
    def backward(context, gradient):
        context.device.launches += 1
        inputs = [tensor.detach().requires_grad_() for tensor in context.inputs]
        with torch.enable_grad():
            output = scaled_dot_product_attention(*inputs, **context.kwargs)
        gradients = torch.autograd.grad(output, inputs, gradient.held)
        return None, *map(PretendTensor, gradients), None


def _check_one_device(function: Any, *groups: Any) -> None:
    """Raise RuntimeError, as CUDA does, if there are tensors of the CPU and of the accelerator."""
    tensors = [tensor for group in groups for tensor in group]
    if len({isinstance(tensor, PretendTensor) for tensor in tensors}) > 1:
        raise RuntimeError(f"{function} was given tensors of the CPU and of the accelerator")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendTensor) else value


def _wrapped(value: Any) -> Any:
    plain = isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor)
    return PretendTensor(value) if plain else value


def _place() -> str:
    """Return file and line of the innermost caller that is neither torch nor this file."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if file != __file__ and "/torch/" not in file:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('site-packages/')[2]}:{frame.f_lineno}"
