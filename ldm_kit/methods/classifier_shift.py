"""Data augmentation of noisy classifiers: pictures shifted by whole pixels."""

import torch
from torch import Tensor

from ldm_kit.diffusion import rng


def shifted(x: Tensor, most: int, seed: int, position: Tensor) -> Tensor:
    """Shift each picture of x [B, C, H, W] along both axes by -most..most whole pixels, repeating edge pixels.

    `seed` and a picture's position [B], its number among all samples of the run, determine its shift.
    """
    rows, columns = (_moved(x.shape[i], most, rng.uniform(seed, f"shift {i}", position)) for i in (2, 3))
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _moved(side: int, most: int, u: Tensor) -> Tensor:
    """Return, for each of `side` rows (or columns) of B shifted pictures, the index of its source row, int64 [B, side].

    The shift is -most..most pixels, by the random numbers u [B] in [0, 1).
    """
    offset = (u * (2 * most + 1)).long() - most
    return (torch.arange(side, device=u.device) + offset[:, None]).clamp(0, side - 1)
