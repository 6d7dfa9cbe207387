"""Levels: pictures as whole numbers, 256 levels (uint8) or, of data in units of their own, 65536 levels (uint16).

The lowest level stands for -1 and the highest for 1, whatever the number of levels.
"""

import torch
from torch import Tensor

HIGHEST: dict[torch.dtype, int] = {torch.uint8: 255, torch.uint16: 65535}  # highest level by type of the pixels


def to_unit(pictures: Tensor) -> Tensor:
    """Convert levels, uint8 0..255 or uint16 0..65535, of any shape, to float32 in [-1, 1]."""
    return pictures.to(torch.float32) / (HIGHEST[pictures.dtype] / 2) - 1


def to_bytes(x: Tensor) -> Tensor:
    """Convert float pixels in [-1, 1], of any shape, to uint8 0..255, rounded and clamped; NaN becomes 0."""
    return to_levels(x, torch.uint8)


def to_levels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert float pixels in [-1, 1], of any shape, to levels, rounded and clamped; NaN becomes 0.

    Args:
        x: the pixels.
        dtype: torch.uint8 for 256 levels, torch.uint16 for 65536.
    """
    highest = HIGHEST[dtype]
    levels = ((x.float() + 1) * (highest / 2)).round().clamp(0, highest).nan_to_num(0)
    return levels.to(dtype) if dtype is torch.uint8 else levels.to(torch.int32).to(dtype)


def as_bytes(pictures: Tensor) -> Tensor:
    """Return pictures [N, C, H, W] with 256 levels: uint8 as they are, uint16 rounded."""
    return pictures if pictures.dtype is torch.uint8 else to_bytes(to_unit(pictures))
