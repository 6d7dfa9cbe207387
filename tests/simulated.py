"""A simulated accelerator without float64, whose numbers are computed on the CPU: for what MPS does and a test cannot.

Its tensors say that they are on `DEVICE`. Float64 there raises a TypeError, as on MPS, and an operation on tensors of
both devices a RuntimeError. It knows no autocast.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ldm_kit.diffusion.float64 import has_float64

DEVICE = torch.device("meta")  # a device that every build of torch knows
_BOTH = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class OnDevice(Tensor):
    """A tensor on the simulated device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )

    def __init__(self, inner: Tensor) -> None:
        self.numbers = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    ours = any(isinstance(leaf, OnDevice) for leaf in leaves)
    target = kwargs.get("device")
    there = ours if target is None else torch.device(target) == DEVICE
    if ours and func not in _BOTH + _INDEXED and any(type(leaf) is not OnDevice and leaf.dim() for leaf in leaves):
        raise RuntimeError(f"{func}: expected all tensors on one device, found the simulated one and the CPU")
    kwargs = kwargs | ({"device": torch.device("cpu")} if target is not None else {})
    inner_args, inner_kwargs = tree_map(lambda x: x.numbers if isinstance(x, OnDevice) else x, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and isinstance(result, Tensor):
        return args[0] if result is inner_args[0] else result
    return tree_map(_wrap, result) if there else result


def _wrap(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.float64:
        raise TypeError("cannot convert to float64: the simulated device does not support it")
    return OnDevice(value)


@contextmanager
def device_without_float64() -> Iterator[torch.device]:
    """Make the simulated device known to torch's factories; yields it."""
    has_float64.cache_clear()
    try:
        with _Mode(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
            yield DEVICE
    finally:
        has_float64.cache_clear()


def move(tensor: Tensor) -> OnDevice:
    """Return a tensor on the simulated device."""
    return OnDevice(tensor)
