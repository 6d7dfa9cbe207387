"""How close a reconstruction is to its original: PSNR and SSIM of pictures in [-1, 1], and honest means over a set.

Over a set, metrics are kept as sums and counts (`Running`), never as means of means: the last batch may be small and
processes may see unequal shares. A set's PSNR is by custom the mean of the pictures' PSNRs; the PSNR of the mean
squared error is `decibels(errors.mean())`, never larger, and governed by the worst pictures. Say which is reported.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-10  # of the squared error, so that one perfect picture leaves a set's mean finite: 106 dB at most


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each picture, [B]: mean over C, H, W of (x - y)^2 in float32, y clamped to [-1, 1].

    Raises:
        ValueError: x and y are not floats of one shape [B, C, H, W].
    """
    _alike(x, y)
    return (x.float() - y.float().clamp(-1, 1)).square().mean((1, 2, 3))


def decibels(error: Tensor | float) -> Tensor:
    """PSNR of a squared error for pictures in [-1, 1]: 10 log10(2^2 / error), float64; errors below 1e-10 count as it.

    It equals the usual 10 log10(255^2 / error) on bytes, unrounded.
    """
    return 10 * torch.log10(4 / torch.as_tensor(error).detach().cpu().double().clamp_min(FLOOR))


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, [B] float64 on the CPU: 10 log10(4 / mse(x, y)).

    Raises:
        ValueError: as in `mse`.
    """
    return decibels(mse(x, y))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of each picture, [B] float32 (Wang et al. 2004; torchmetrics; Gaussian 11x11, sigma 1.5).

    SSIM's luminance term wants intensities from 0, so both are moved from [-1, 1] to [0, 2] (data range 2, y clamped):
    the figure is that of the same pictures in [0, 1] with data range 1. Channels are averaged; borders are reflected.

    Raises:
        ValueError: as in `mse`, or a side below 6 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import

    _alike(x, y)
    if min(x.shape[-2:]) < 6:
        raise ValueError(f"SSIM's 11x11 window needs at least 6 pixels a side, got {[*x.shape[-2:]]}")
    x, y = x.float() + 1, y.float().clamp(-1, 1) + 1
    kept = structural_similarity_index_measure(y, x, sigma=1.5, kernel_size=11, reduction="none", data_range=2.0)
    assert isinstance(kept, Tensor)
    return kept


class Running:
    """A mean over a set, kept as its sum and count in float64; a NaN stays a NaN."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Take in the values of some pictures, one each, any shape."""
        self.sum += values.detach().cpu().double().sum().item()
        self.count += values.numel()

    def mean(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> float:
        """The mean so far, NaN of nothing; over all processes if given `all_reduce`, which all of them must then call.

        `all_reduce` takes float64 [2] on the CPU, sum and count, and returns their sums over processes; it moves the
        tensor to a device itself if its backend wants one. What is held here does not change.
        """
        totals = torch.tensor([self.sum, self.count], dtype=torch.float64)
        total, count = (all_reduce(totals) if all_reduce else totals).tolist()
        return total / count if count else math.nan


def _alike(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() != 4 or not x.is_floating_point() or not y.is_floating_point():
        got = f"{x.dtype} {[*x.shape]} and {y.dtype} {[*y.shape]}"
        raise ValueError(f"expected two float tensors [B, C, H, W] of one shape in [-1, 1], got {got}")
