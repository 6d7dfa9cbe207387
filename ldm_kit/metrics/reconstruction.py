"""Quality of reconstructions: MSE, PSNR and SSIM (with two kinds of borders) of pictures in [-1, 1].

The PSNR of a set is usually the mean of its pictures' PSNRs. The other usage, `decibels` of the mean of its pictures'
`mse`, is never larger, and is dominated by the worst pictures; reports must say which of the two they give.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ldm_kit.diffusion.float64 import has_float64

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


def unit_mse(x: Tensor, y: Tensor) -> Tensor:
    """Return `mse` of pictures that are scaled to [0, 1], as papers state it, [B] float32; x and y are in [-1, 1]."""
    return mse(x, y) / 4


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
    borders, mean over channels. Papers on diffusion autoencoders use other borders: `ssim_zero_padded`. The luminance
    term expects intensities from 0, so x and y are shifted from [-1, 1] to [0, 2] (data range 2); the value is that of
    the same pictures in [0, 1] with data range 1.

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


def ssim_zero_padded(x: Tensor, y: Tensor) -> Tensor:
    """Return the structural similarity of each picture with zero padding, [B] float32 in [-1, 1].

    SSIM is by Wang et al. 2004, as in the PyTorch implementation of Po-Hsun Su that papers on diffusion autoencoders
    use (Preechakul et al. 2022, Zhang et al. 2022): mean over all pixels and channels of

        (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2)), c1 = 0.01^2, c2 = 0.03^2,

    where means m, variances s^2 and the covariance s_xy are weighted by a Gaussian window of 11x11 pixels, sigma 1.5,
    around each pixel. Pixels outside the picture count as 0, black. Pictures are shifted and scaled to [0, 1] (data
    range 1) before. `ssim` differs from it near the borders alone.

    Args:
        x: originals, [B, C, H, W] in [-1, 1].
        y: reconstructions, of the same shape; clamped to [-1, 1].

    Raises:
        ValueError: x and y are not floats of one shape [B, C, H, W].
    """
    _check(x, y)
    dtype = torch.float64 if has_float64(x.device) else torch.float32  # not the TF32 of convolutions in float32
    x, y = (x.to(dtype) + 1) / 2, (y.to(dtype).clamp(-1, 1) + 1) / 2
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 has no digits for a variance
        m_x, m_y, xx, yy, xy = _window_means(torch.stack([x, y, x * x, y * y, x * y])).unbind()
    luminance = (2 * m_x * m_y + 1e-4) / (m_x**2 + m_y**2 + 1e-4)
    structure = (2 * (xy - m_x * m_y) + 9e-4) / (xx - m_x**2 + yy - m_y**2 + 9e-4)
    return (luminance * structure).mean((1, 2, 3)).float()


def _window_means(x: Tensor) -> Tensor:
    """Return the Gaussian-weighted mean around each pixel of x [..., H, W]; pixels outside count as 0."""
    window = (-((torch.arange(11, dtype=x.dtype, device=x.device) - 5) ** 2) / (2 * 1.5**2)).exp()
    window = window / window.sum()
    rows = conv2d(x.reshape(-1, 1, *x.shape[-2:]), window[None, None, :, None], padding=(5, 0))
    return conv2d(rows, window[None, None, None], padding=(0, 5)).view_as(x)


def _check(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() != 4 or not x.is_floating_point() or not y.is_floating_point():
        got = f"{x.dtype} {[*x.shape]} and {y.dtype} {[*y.shape]}"
        raise ValueError(f"expected two float tensors [B, C, H, W] of one shape in [-1, 1], got {got}")
