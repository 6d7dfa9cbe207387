"""Choice of precision: bfloat16 is fast only on a processor that computes it natively.

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
    """Return the precision to use on a device: "auto" becomes bf16 where that is fast, else "no" (no autocast)."""
    if precision != "auto":
        return precision
    return "bf16" if is_bf16_fast(device) else "no"


def check_trainable(precision: Precision, device: torch.device | str) -> None:
    """Check that a device can train in a precision.

    Raises:
        UserError: the precision is fp16 and the device a CPU, where small gradients underflow without loss scaling.
    """
    if precision == "fp16" and torch.device(device).type == "cpu":
        raise UserError("train.precision fp16 needs a GPU, and this run is on a CPU; take bf16, auto or no")


def matrix_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype for matrix products that need only 8 significant bits: bfloat16 where it is fast, or float32."""
    return torch.bfloat16 if is_bf16_fast(device) else torch.float32


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context in which networks on a device autocast to `dtype`; None: no autocast."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
