"""Support of devices without float64 (Apple's MPS, some Intel GPUs).

For such a device, float64 tables are indexed on the CPU; the values are cast to float32 and moved to the device.
"""

from functools import cache

import torch
from torch import Tensor


@cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64; the result of one trial per device is cached."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def exact(tensor: Tensor) -> Tensor:
    """Return the indices `tensor` unchanged or, if their device has no float64, on the CPU, to index float64 tables.

    `move_back` moves the values read from the table to the device of the indices.
    """
    return tensor if has_float64(tensor.device) else tensor.cpu()


def move_back(values: Tensor, like: Tensor) -> Tensor:
    """Move values that were computed from `exact(like)` to the device of `like`.

    Args:
        values: float64, on the device of `like` or on the CPU. If they must be moved, they are cast to float32.
        like: the indices of which the values are a function, such as timesteps.
    """
    return values if values.device == like.device else values.float().to(like.device)
