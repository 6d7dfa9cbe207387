"""Metrics of an autoencoder's reconstructions of a picture set; posterior means are decoded, without noise."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from diffusers import VQModel
from torch import Tensor

from autoencoder.base import Autoencode, Moments, decode, encode, latent_shape
from autoencoder.codebook import CodeUsage
from autoencoder.perceptual import Perceptual
from autoencoder.statistics import LatentStatistics, latent_sums
from autoencoder.vq import VQConfig
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.levels import to_levels, to_unit
from ldm_kit.data.peers import agreed, divided, everyone, summed
from ldm_kit.memory import BatchSize
from ldm_kit.methods.autoencoder_config import AutoencoderRun
from ldm_kit.metrics.reconstruction import psnr, ssim

CODEBOOK = ("codebook_usage", "codebook_perplexity", "codebook_perplexity_share")  # figures of VQ models


@torch.no_grad()
def evaluate(
    autoencode: Autoencode, perceptual: Perceptual, pictures: PictureSet, rows: Tensor, size: BatchSize
) -> dict[str, float]:
    """Return metrics of reconstructions: PSNR (dB), SSIM, perceptual distance and, for VQ, use of the codebook.

    Pictures are encoded to posterior means, without noise.

    Args:
        autoencode: the autoencoder to measure.
        perceptual: distance between pictures and reconstructions; left out of the result if its `config.spec` is
            "none".
        pictures: the set that the measured pictures belong to.
        rows: indices [N] of the measured pictures in the set.
        size: number of pictures in a batch; reduced when memory runs out.

    Returns:
        Means over the measured pictures, named heldout_psnr, heldout_ssim and so on.
    """
    vae, device = autoencode.vae, next(autoencode.parameters()).device
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
    if perceptual.config.spec != "none":
        measures["perceptual"] = lambda x, y: perceptual(y, x)

    usage = CodeUsage(vae.quantize.n_e) if isinstance(vae, VQModel) else None

    def measured(indices: Tensor) -> tuple[Tensor, Tensor | None]:
        x = to_unit(pictures.pictures(indices.tolist()).to(device))
        output = autoencode(x, torch.zeros(len(x), *latent_shape(vae, *x.shape[-2:]), device=device))
        y = output.picture.clamp(-1, 1)
        return torch.stack([measure(x, y).cpu().double() for measure in measures.values()], 1), output.indices

    def own(indices: Sequence[int]) -> Tensor:
        values: list[Tensor] = []
        for value, codes in size.map(rows[indices], measured):
            values.append(value)
            if usage is not None and codes is not None:
                usage.add(codes)
        return torch.cat(values)

    means = divided(len(rows), own).mean(0).tolist()
    metrics = {f"heldout_{name}": mean for name, mean in zip(measures, means, strict=True)}
    if usage is not None:
        usage.counts = torch.stack(agreed(everyone(), usage.counts.cpu)).sum(0)
        metrics |= {f"heldout_codebook_{name}": value for name, value in usage.summary().items()}
    return metrics


def sums_of_latents(vae: Any, pictures: PictureSet, rows: Sequence[int], size: BatchSize) -> Tensor:
    """Return sums over pictures from which mean and deviation of Z latent channels follow, float64 [4, Z].

    The rows are: sum of the latents, sum of their squares, number of elements per channel, number of pictures (see
    `latent_sums`). In a run of several processes each encodes a part of the pictures.

    Args:
        vae: the autoencoder.
        pictures: the set that the pictures belong to.
        rows: indices of the pictures in the set, at least one.
        size: number of pictures in a batch; reduced when memory runs out.
    """
    device = next(vae.parameters()).device

    def own(indices: Sequence[int]) -> Tensor:
        def sums(batch: range) -> Tensor:
            return latent_sums(vae, to_unit(pictures.pictures([rows[indices[i]] for i in batch]).to(device)))

        return torch.stack([*size.batches(len(indices), sums)]).sum(0)

    return summed(len(rows), own)


@torch.no_grad()
def reconstruct(vae: Any, x: Tensor) -> Tensor:
    """Return `vae`'s reconstructions of pictures x [B, C, H, W] in [-1, 1], decoded from their posterior means."""
    moments = cast(Moments, encode(vae, x))
    return decode(vae, moments.mean).clamp(-1, 1)


def reconstruct_levels(vae: Any, pictures: Tensor) -> Tensor:
    """Return `vae`'s reconstructions of pictures, levels [B, C, H, W], as levels of the same type on the CPU."""
    x = to_unit(pictures.to(next(vae.parameters()).device))
    return to_levels(reconstruct(vae, x).cpu(), pictures.dtype)


def of_training(figure: str) -> str:
    """Return the name of the metric `figure` when measured on training pictures: train_psnr for heldout_psnr."""
    return figure.replace("heldout_", "train_", 1)


def describe_latents(statistics: LatentStatistics | None) -> str:
    """Return a phrase on the latents of a saved autoencoder for the log.

    Args:
        statistics: measured before they were folded into the weights; None: none were measured, as only the decoder was
            trained.
    """
    if statistics is None:
        return "its latents are those of init"
    mean, std = (_listed(value) for value in (statistics.mean, statistics.std))
    return f"latent mean {mean} and deviation {std} folded into its weights"


def _listed(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"


def figure_names(config: AutoencoderRun, data: Split | None) -> list[str]:
    """Return the names of the held-out metrics of a run; if `data` is None (not loaded), all possible names."""
    perceptual = () if config.perceptual.spec == "none" else ("perceptual",)
    codes = CODEBOOK if isinstance(config.autoencoder, VQConfig) else ()
    heldout = [f"heldout_{name}" for name in ("psnr", "ssim", *perceptual, *codes)]
    training = [of_training(name) for name in heldout]
    return [*heldout, *training] if data is None else heldout if len(data.heldout) else training
