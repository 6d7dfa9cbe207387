"""Pictures moved by whole pixels, on which a noisy classifier may be trained."""

import torch
from torch import Tensor

from ldm_kit.diffusion import rng


def shifted(x: Tensor, most: int, seed: int, position: Tensor) -> Tensor:
    """Move each of pictures [B, C, H, W] by whole pixels in -most..most both ways, edges repeated."""
    rows, columns = (_moved(x.shape[i], most, rng.uniform(seed, f"shift {i}", position)) for i in (2, 3))
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _moved(side: int, most: int, u: Tensor) -> Tensor:
    """Return which line [B, side] of a picture each line shows, for uniform numbers u [B]."""
    offset = (u * (2 * most + 1)).long() - most
    return (torch.arange(side, device=u.device) + offset[:, None]).clamp(0, side - 1)
