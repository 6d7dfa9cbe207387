"""Which precision is fast: bfloat16 only where the processor computes it natively.

oneDNN, with which torch convolves and multiplies matrices on a CPU, computes bfloat16 from AVX-512 on. On an older
processor torch falls back to loops that take twenty times as long as float32.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from ldm_kit.config import Precision, UserError


def is_bf16_fast(device: torch.device | str) -> bool:
    """Return whether a device computes convolutions and matrix products in bfloat16 natively."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve_precision(precision: Precision, device: torch.device | str) -> Literal["no", "bf16", "fp16"]:
    """Return a config's precision on a device; "auto" is bf16 where that is fast, else no autocast."""
    if precision != "auto":
        return precision
    return "bf16" if is_bf16_fast(device) else "no"


def check_trainable(precision: Precision, device: torch.device | str) -> None:
    """Check that a device can train in a precision.

    Raises:
        UserError: fp16 on a CPU, where no scaled loss keeps small gradients from vanishing.
    """
    if precision == "fp16" and torch.device(device).type == "cpu":
        raise UserError("train.precision fp16 needs a GPU, and this run is on a CPU; take bf16, auto or no")


def matrix_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype in which matrix products of 8 significant bits are fastest: bfloat16 or float32."""
    return torch.bfloat16 if is_bf16_fast(device) else torch.float32


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context in which networks on a device compute in `dtype`; None: in that of their weights."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
