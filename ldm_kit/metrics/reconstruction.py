"""Quality of reconstructions: MSE, PSNR and SSIM of pictures in [-1, 1].

The PSNR of a set is usually the mean of its pictures' PSNRs. The other usage, `decibels` of the mean of its pictures'
`mse`, is never larger, and is dominated by the worst pictures; reports must say which of the two they give.
"""

from typing import Any

import torch
from torch import Tensor

MIN_ERROR = 1e-10  # squared error that a perfect reconstruction counts as (106 dB), so that means over a set are finite


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of each picture, [B] float32: mean of (x - y)^2 over C, H, W.

    Args:
        x: originals, [B, C, H, W] in [-1, 1].
        y: reconstructions, of the same shape; clamped to [-1, 1].

    Raises:
        ValueError: x and y are not floats of one shape [B, C, H, W].
    """
    _check(x, y)
    return (x.float() - y.float().clamp(-1, 1)).square().mean((1, 2, 3))


def decibels(error: Tensor | float) -> Tensor:
    """Return the PSNR in dB, float64 on the CPU, for mean squared errors of pictures in [-1, 1]: 10 log10(2^2 / error).

    This equals the usual 10 log10(255^2 / error) for pictures in 0..255 that are not rounded. Errors below 1e-10 count
    as 1e-10.
    """
    return 10 * torch.log10(4 / torch.as_tensor(error).detach().cpu().double().clamp_min(MIN_ERROR))


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, [B] float64 on the CPU: 10 log10(4 / mse(x, y)).

    Args:
        x: originals, [B, C, H, W] in [-1, 1].
        y: reconstructions, of the same shape; clamped to [-1, 1].

    Raises:
        ValueError: x and y are not floats of one shape [B, C, H, W].
    """
    return decibels(mse(x, y))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the structural similarity of each picture, [B] float32 in [-1, 1].

    SSIM is by Wang et al. 2004, as torchmetrics computes it: Gaussian window of 11x11 pixels, sigma 1.5, reflected
    borders, mean over channels. Its luminance term expects intensities from 0, so x and y are shifted from [-1, 1] to
    [0, 2] (data range 2); the value is that of the same pictures in [0, 1] with data range 1.

    Args:
        x: originals, [B, C, H, W] in [-1, 1], at least 6 pixels a side.
        y: reconstructions, of the same shape; clamped to [-1, 1].

    Raises:
        ValueError: x and y are not floats of one shape [B, C, H, W], or a side is below 6 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import

    _check(x, y)
    if min(x.shape[-2:]) < 6:
        raise ValueError(f"SSIM's 11x11 window needs at least 6 pixels a side, got {[*x.shape[-2:]]}")
    x, y = x.float() + 1, y.float().clamp(-1, 1) + 1
    options: dict[str, Any] = {"sigma": 1.5, "kernel_size": 11, "reduction": "none", "data_range": 2.0}
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 has no digits for a variance
        values = structural_similarity_index_measure(y, x, **options)
    assert isinstance(values, Tensor)
    return values


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() != 4 or not x.is_floating_point() or not y.is_floating_point():
        got = f"{x.dtype} {[*x.shape]} and {y.dtype} {[*y.shape]}"
        raise ValueError(f"expected two float tensors [B, C, H, W] of one shape in [-1, 1], got {got}")
