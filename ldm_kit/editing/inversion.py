"""DDIM inversion of pictures with a model of prompts or classes, and the noised start of img2img.

Inversion and sampling use the same times, and the level of time 0 stands for the picture itself (`pdae_grid`), so that
sampling reverses the inversion but for an error of order 1/N, which is measured and reported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from autoencoder.base import reduction
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser, times_like
from ldm_kit.diffusion.pdae import pdae_grid
from ldm_kit.diffusion.posterior import levels
from ldm_kit.diffusion.respacing import Spacing, timesteps
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.editing.sample_options import GuidedOptions
from ldm_kit.models.decoding import decode_pictures, encode_pictures
from ldm_kit.models.options import ResolvedOptions
from ldm_kit.models.pipeline import Pipeline


def inversion_times(pipeline: Pipeline, options: GuidedOptions, strength: float = 1.0) -> list[int]:
    """Return the rising times of an inversion, the steps spread from 0 up to a share (0, 1] of the training times.

    There are fewer steps where that share has fewer times; and steps that were left out are as many as can be.

    Raises:
        UserError: more steps than training times.
    """
    total, steps = pipeline.schedule_config.num_train_timesteps, options.steps
    if "steps" not in options.model_fields_set:
        steps = min(steps, total - 1)
    try:
        pdae_grid(total, steps)
    except ValueError as error:
        raise UserError(f"--steps {steps}: {error}") from None
    share = max(2, round(total * strength))
    return pdae_grid(share, min(steps, share - 1))


def sampling_times(pipeline: Pipeline, options: ResolvedOptions, strength: float = 1.0) -> list[int]:
    """Return falling times, the steps spread from a share (0, 1] of the training times to -1.

    There are fewer steps where that share has fewer times.
    """
    if strength == 1:
        return list(options.timesteps)
    share = max(1, round(pipeline.schedule_config.num_train_timesteps * strength))
    spacing = options.spacing if options.spacing in get_args(Spacing) else "trailing"
    return timesteps(share, min(options.steps, share), spacing)


def picture_shape(pipeline: Pipeline) -> tuple[int, int]:
    """Return (channels, resolution) of the pictures that a model samples."""
    channels, side, _ = pipeline.latent_shape
    if pipeline.vae is None:
        return channels, side
    return pipeline.vae.config["in_channels"], side * reduction(pipeline.vae)


@torch.no_grad()
def encode_image(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """Encode pictures uint8 [N, C, R, R] as the mean latents [N, Z, h, w], or as pixels for a model without VAE."""
    return encode_pictures(pipeline.vae, pictures.to(pipeline.device))


@torch.no_grad()
def invert_latents(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: object, refine: int = 0
) -> Iterator[State]:
    """Invert x [B, ...] by DDIM over rising times, and refine each step towards the inverse of the sampling step.

    A sampling step from x_u evaluates the network at x_u, the inversion step at the level below. `refine` evaluations
    at x_u solve for the x_u that the sampling step takes to x_t, by fixed-point iteration (Pan et al. 2023).

    Yields:
        The state after each step.
    """
    for level, next_level in pairwise(levels(denoiser.schedule, times)):
        *_, state = ddim(denoiser, x, [level.t, next_level.t], cond)
        x_u = state.x
        for _ in range(refine if level.a > 0 else 0):
            p = denoiser(x_u, times_like(x_u, next_level.t), cond)
            x_u = (next_level.a * x + (next_level.s * level.a - next_level.a * level.s) * p.eps) / level.a
        x = x_u
        yield state._replace(x=x)


@torch.no_grad()
def noised_start(pipeline: Pipeline, x_0: Tensor, seeds: Sequence[int], time: int) -> Tensor:
    """Add noise of a time's level to latents x_0 [B, ...], each from its own seed."""
    eps = initial_noise(seeds, x_0.shape[1:]).to(x_0)
    return pipeline.schedule.add_noise(x_0, eps, times_like(x_0, time))


@dataclass(frozen=True)
class ReconstructionError:
    """Mean squared errors of pixels in 0..1 between inverted pictures and their reconstructions."""

    total: float
    autoencoder: float | None  # of the autoencoder alone; None for a model of pixels

    def __str__(self) -> str:
        text = f"reconstruction error {self.total:.2e} (mean squared, of pixels in 0 to 1)"
        return text if self.autoencoder is None else f"{text}; the autoencoder's share {self.autoencoder:.2e}"


@torch.no_grad()
def reconstruction_error(
    pipeline: Pipeline, pictures: Tensor, latents: Tensor, reconstructed: Tensor
) -> ReconstructionError:
    """Measure the error of pictures uint8 [N, C, R, R] whose latents were inverted and reconstructed."""
    autoencoder = None
    if pipeline.vae is not None:
        autoencoder = mean_squared(pictures, decode_pictures(pipeline.vae, latents))
    return ReconstructionError(mean_squared(pictures, pipeline.pictures(reconstructed)), autoencoder)


def mean_squared(one: Tensor, other: Tensor) -> float:
    """Return the mean squared difference of pictures uint8, in units of a pixel's range."""
    return float((one.float() - other.float()).div(255).square().mean())
