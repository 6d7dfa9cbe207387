"""Measure the mean and standard deviation of latents over a data set, and fold them into an autoencoder.

Diffusion expects latents of mean 0 and standard deviation 1. Most diffusers pipelines read only `scaling_factor`. For a
KL model the whole normalisation (a shift and a scale per channel) therefore goes into its 1x1 convolutions, and
scaling_factor becomes 1: every pipeline then normalises exactly.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from autoencoder.base import AutoencoderError, affine, encode, float64
from autoencoder.classes import FirstStage


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and standard deviation of each of the Z channels of latents, as `encode` returned them for a data set.

    The latents are samples of the posterior, so `std` includes the posterior's variance.
    """

    mean: Tensor  # [Z] float64
    std: Tensor  # [Z] float64
    count: int  # number of pictures measured

    @property
    def overall(self) -> float:
        """Standard deviation of all latents' elements about their common mean; LDM's scale factor is its inverse."""
        square = (self.std.square() + self.mean.square()).mean()
        return (square - self.mean.mean().square()).sqrt().item()


@torch.no_grad()
def measure(vae: FirstStage, batches: Iterable[Tensor]) -> LatentStatistics:
    """Measure the mean and standard deviation, over a data set, of latents sampled from the posterior.

    They are exact, in float64: no noise is drawn, the posterior's variance is added to that of its means instead.

    Args:
        vae: the autoencoder.
        batches: batches of pictures [B, C, H, W] in [-1, 1].

    Raises:
        AutoencoderError: there are no pictures, or a latent channel is constant or not finite.
    """
    return from_sums(latent_sums(vae, x) for x in batches)


@torch.no_grad()
def latent_sums(vae: FirstStage, x: Tensor) -> Tensor:
    """Sum the first and second moments of the latents of pictures x [B, C, H, W] in [-1, 1], for `from_sums`.

    Returns:
        Float64 [4, Z] on the CPU, with four numbers for each channel: the expected sums of z and of z^2 over the batch
        and all positions (z: latents sampled from the posterior), the number of elements, and the number of pictures.
    """
    mean, logvar = (float64(m) for m in encode(vae, x))
    sums = torch.stack([mean.sum((0, 2, 3)), (mean.square() + logvar.exp()).sum((0, 2, 3))])
    elements = torch.full_like(sums[:1], mean[:, 0].numel())
    return torch.cat([sums, elements, torch.full_like(elements, len(x))]).cpu()


def from_sums(sums: Iterable[Tensor]) -> LatentStatistics:
    """Return latent statistics from the sums that `latent_sums` returned for each batch.

    Raises:
        AutoencoderError: there are no sums, or a latent channel is constant or not finite.
    """
    total: Tensor | None = None
    for batch in sums:
        total = batch if total is None else total + batch
    if total is None:
        raise AutoencoderError("Latent statistics need at least one batch of pictures, got none.")
    first, second, elements, pictures = total
    mean = first / elements
    std = (second / elements - mean.square()).clamp_min(0).sqrt()
    return _check(LatentStatistics(mean, std, int(pictures[0])))


@torch.no_grad()
def fold(vae: AutoencoderKL | VQModel, statistics: LatentStatistics) -> None:
    """Make `encode` return normalised latents: fold measured `statistics` into the model `vae`, in place.

    Reconstructions stay the same.

    KL: each channel of the latents gets mean 0 and standard deviation 1. The shift and scale per channel go into
    quant_conv and post_quant_conv (added as identities where the model has none), and scaling_factor becomes 1.

    VQ: the latents get an overall standard deviation of 1 by one scaling_factor for all channels, because a scale per
    channel would change which code is nearest; means stay.

    Raises:
        AutoencoderError: a standard deviation is near 0, or a statistic is not finite.
    """
    _check(statistics)
    if isinstance(vae, VQModel):
        vae.register_to_config(scaling_factor=float(affine(vae).scale) / statistics.overall)
        return
    shift, scale = (v.flatten().cpu() for v in affine(vae))
    mean, std = shift + statistics.mean / scale, statistics.std / scale  # of raw latents
    model: Any = vae
    _ensure_convolutions(model)
    _fold_in(model.quant_conv, mean, std)
    _fold_out(model.post_quant_conv, mean, std)
    vae.register_to_config(scaling_factor=1.0, shift_factor=None, latents_mean=None, latents_std=None)


def _fold_in(conv: nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Change a KL model's quant_conv (`conv`), in place, so that it returns the moments of normalised latents.

    For each channel, a mean m becomes (m - `mean`) / `std`, and a log variance v becomes v - 2 ln `std`; `mean` and
    `std` are those of the raw latents, [Z].
    """
    assert conv.bias is not None
    channels = len(mean)
    weight, bias = conv.weight.double().cpu(), conv.bias.double().cpu()
    weight[:channels] /= std.view(-1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)


def _fold_out(conv: nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Change a KL model's post_quant_conv (`conv`), in place, so that it takes normalised latents z.

    W z + b becomes W (std z + mean) + b, where `mean` and `std` are those of the raw latents, [Z].
    """
    assert conv.bias is not None
    weight, bias = conv.weight.double().cpu(), conv.bias.double().cpu()
    conv.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
    conv.weight.copy_(weight * std.view(1, -1, 1, 1))


def _ensure_convolutions(model: Any) -> None:
    """Add quant_conv and post_quant_conv, as identities, to a model that lacks them.

    Folding a shift into the neighbouring 3x3 convolutions would be wrong at borders, which have zero padding.
    """
    channels = model.config.latent_channels
    for name, width in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        if getattr(model, name) is None:
            conv = nn.Conv2d(width, width, 1, device=model.device, dtype=model.dtype)
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            setattr(model, name, conv)
            model.register_to_config(**{f"use_{name}": True})


def _check(statistics: LatentStatistics) -> LatentStatistics:
    values = torch.stack([statistics.mean, statistics.std])
    bad = ~values.isfinite().all(0) | (statistics.std < 1e-6)
    if bad.any():
        listed, std = bad.nonzero().flatten().tolist(), [f"{s:.3g}" for s in statistics.std[bad].tolist()]
        raise AutoencoderError(f"Latent channels {listed} have deviations {std}: expected finite ones above 1e-6.")
    return statistics
