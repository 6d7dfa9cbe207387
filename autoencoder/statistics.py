"""Mean and standard deviation of latents, measured over a data set and folded into the weights.

Diffusion expects latents of mean 0 and deviation 1. Most diffusers pipelines know only `scaling_factor`, so for a KL
model the whole affine map, per channel, goes into its 1x1 convolutions, and every pipeline is exact with factor 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor, nn

from autoencoder.base import AutoencoderError, affine, encode, float64


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and deviation of *sampled* latents in the model's present normalisation, per channel."""

    mean: Tensor  # [Z] float64
    std: Tensor  # [Z] float64
    count: int  # pictures measured

    @property
    def overall(self) -> float:
        """Deviation over all elements, channel means included; LDM's scale factor is one over it."""
        square = (self.std.square() + self.mean.square()).mean()
        return (square - self.mean.mean().square()).sqrt().item()


@torch.no_grad()
def measure(
    vae: AutoencoderKL | VQModel, batches: Iterable[Tensor], reduce: Callable[[Tensor], Tensor] | None = None
) -> LatentStatistics:
    """Measure latents over batches of pictures, exactly in float64 from the posterior: no noise is drawn.

    Args:
        vae: the autoencoder.
        batches: pictures [B, C, H, W] in [-1, 1].
        reduce: sum of a tensor over ranks; None: one rank.

    Raises:
        AutoencoderError: there are no pictures, or a channel is constant or not finite.
    """
    return from_sums((latent_sums(vae, x) for x in batches), reduce)


@torch.no_grad()
def latent_sums(vae: AutoencoderKL | VQModel, x: Tensor) -> Tensor:
    """Sum the moments of the latents of pictures x [B, C, H, W] in [-1, 1], as `from_sums` adds them up.

    Returns:
        Float64 [4, Z] on the CPU: sums of z and of z^2 over posteriors and positions, how many elements, how many
        pictures.
    """
    mean, logvar = (float64(m) for m in encode(vae, x))
    sums = torch.stack([mean.sum((0, 2, 3)), (mean.square() + logvar.exp()).sum((0, 2, 3))])
    elements = torch.full_like(sums[:1], mean[:, 0].numel())
    return torch.cat([sums, elements, torch.full_like(elements, len(x))])


def from_sums(sums: Iterable[Tensor], reduce: Callable[[Tensor], Tensor] | None = None) -> LatentStatistics:
    """Return the statistics of what `latent_sums` summed over batches; raises AutoencoderError as `measure`."""
    total: Tensor | None = None
    for batch in sums:
        total = batch if total is None else total + batch
    if total is None:
        raise AutoencoderError("Latent statistics need at least one batch of pictures on every rank, got none.")
    first, second, elements, pictures = reduce(total) if reduce else total
    mean = first / elements
    std = (second / elements - mean.square()).clamp_min(0).sqrt()
    return _check(LatentStatistics(mean, std, int(pictures[0])))


@torch.no_grad()
def fold(vae: AutoencoderKL | VQModel, statistics: LatentStatistics) -> None:
    """Make `encode` return latents of mean 0 and deviation 1, in place; reconstructions stay the same.

    KL: per channel, into quant_conv and post_quant_conv (made, as the identity, where the model has none); the config
    then says scaling_factor 1. VQ: one factor for all channels in the config, because a scale per channel would change
    which code is nearest; means stay.

    Raises:
        AutoencoderError: a deviation is near 0 or not finite.
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
    """Normalise the outputs: rows of the mean become (row - mean) / std, those of logvar lose 2 ln std."""
    assert conv.bias is not None
    channels = len(mean)
    weight, bias = conv.weight.double().cpu(), conv.bias.double().cpu()
    weight[:channels] /= std.view(-1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)


def _fold_out(conv: nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Undo the normalisation before the decoder: W (std z + mean) + b."""
    assert conv.bias is not None
    weight, bias = conv.weight.double().cpu(), conv.bias.double().cpu()
    conv.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
    conv.weight.copy_(weight * std.view(1, -1, 1, 1))


def _ensure_convolutions(model: Any) -> None:
    """Add missing 1x1 convolutions; folding into 3x3 ones would be wrong at borders, which have zero padding."""
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
