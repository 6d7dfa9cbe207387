"""Quality of an autoencoder's reconstructions over a set of pictures, from posterior means."""

from typing import Any, cast

import torch
from diffusers import VQModel
from torch import Tensor

from autoencoder.base import Autoencode, Moments, decode, encode, latent_shape
from autoencoder.codebook import CodeUsage
from autoencoder.perceptual import Perceptual
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.memory import BatchSize
from ldm_kit.metrics.reconstruction import RunningMean, psnr, ssim


@torch.no_grad()
def evaluate(
    autoencode: Autoencode, perceptual: Perceptual, pictures: PictureSet, rows: Tensor, size: BatchSize
) -> dict[str, float]:
    """Measure PSNR (dB), SSIM, perceptual distance and, for VQ, code usage over pictures, from posterior means.

    Args:
        autoencode: the autoencoder.
        perceptual: the perceptual distance.
        pictures: a set.
        rows: indices [N] of the pictures of the set that are measured.
        size: pictures at once.
    """
    vae, device = autoencode.vae, next(autoencode.parameters()).device
    means = {name: RunningMean() for name in ("psnr", "ssim", "perceptual")}
    usage = CodeUsage(vae.quantize.n_e) if isinstance(vae, VQModel) else None

    def measured(indices: range) -> tuple[list[Tensor], Tensor | None]:
        x = to_unit(pictures.pictures(rows[indices.start : indices.stop].tolist()).to(device))
        output = autoencode(x, torch.zeros(len(x), *latent_shape(vae, *x.shape[-2:]), device=device))
        y = output.picture.clamp(-1, 1)
        return [psnr(x, y), ssim(x, y), perceptual(y, x)], output.indices

    for values, codes in size.batches(len(rows), measured):
        for mean, value in zip(means.values(), values, strict=True):
            mean.add(value)
        if usage is not None and codes is not None:
            usage.add(codes)
    metrics = {f"heldout_{name}": mean.mean() for name, mean in means.items()}
    return metrics | ({f"heldout_codebook_{k}": v for k, v in usage.summary().items()} if usage is not None else {})


@torch.no_grad()
def reconstruct(vae: Any, x: Tensor) -> Tensor:
    """Pass pictures [B, C, H, W] in [-1, 1] through posterior mean and back."""
    moments = cast(Moments, encode(vae, x))
    return decode(vae, moments.mean).clamp(-1, 1)


def of_training(figure: str) -> str:
    """Return the name of a held-out figure where it is measured on training pictures."""
    return figure.replace("heldout_", "train_", 1)
