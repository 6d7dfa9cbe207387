"""Devices without float64 (Apple's MPS, some Intel GPUs): tables are indexed on the CPU there, cast, and then moved."""

from functools import cache

import torch
from torch import Tensor


@cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64; it is tried once."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor, such as timesteps or positions, where float64 can be computed: on its device, or on the CPU."""
    return tensor if has_float64(tensor.device) else tensor.cpu()


def move_back(values: Tensor, like: Tensor) -> Tensor:
    """Return float64 values that were computed by `exact` indices on the device of the indices.

    Args:
        values: float64, on the device of the indices or on the CPU.
        like: the indices; where their device has no float64, values are cast to float32 before they are moved.
    """
    return values if values.device == like.device else values.float().to(like.device)
