"""Editing without a semantic encoder, by any text or class model: invert and say something else, or start half-way.

Inversion and drawing walk the same times, and the level of time 0 stands for the picture itself (`pdae_grid`), so that
the way back undoes the way up but for an error of order 1/N, which is measured and told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from autoencoder.base import decode, encode, reduction
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.diffusion.denoiser import Denoiser, times_like
from ldm_kit.diffusion.pdae import pdae_grid
from ldm_kit.diffusion.posterior import levels
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.pipeline import Pipeline


@dataclass(frozen=True)
class Img2ImgOptions:
    """How a picture is drawn anew."""

    steps: int = 50
    guidance_scale: float = 3.0  # classifier-free; 1 is none
    negative: str | None = None
    strength: float = 1.0  # share of the way to pure noise that the picture is taken, in (0, 1]
    refine: int = 0  # further evaluations in each step of an inversion

    def refuse(self) -> None:
        """Refuse numbers out of range; raises UserError."""
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; expected 1 or more")
        if not 0 < self.strength <= 1:
            said = "leaves the picture as it is" if self.strength == 0 else "is no share of the way to noise"
            raise UserError(f"--strength {self.strength:g} {said}; expected more than 0, up to 1 (0.5 to 0.8 is usual)")
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"--guidance_scale is {self.guidance_scale:g}; expected a number of 0 or more, 1 is none")
        if self.refine < 0:
            raise UserError(f"--refine is {self.refine}; expected 0 or more")

    @property
    def walked(self) -> int:
        """Steps that lie within the strength."""
        return max(1, round(self.steps * self.strength))


def rising(pipeline: Pipeline, how: Img2ImgOptions) -> list[int]:
    """The times of an inversion, from 0 as far up as the strength goes; raises UserError for too many steps."""
    try:
        return pdae_grid(pipeline.schedule_config.num_train_timesteps, how.steps)[: how.walked + 1]
    except ValueError as error:
        raise UserError(f"--steps {how.steps}: {error}") from None


def falling(pipeline: Pipeline, how: Img2ImgOptions) -> list[int]:
    """The times of a drawing that starts as far up as the strength goes; raises UserError for too many steps."""
    return list(SamplingOptions(steps=how.steps).resolve(pipeline).timesteps)[-how.walked - 1 :]


def shape(pipeline: Pipeline) -> tuple[int, int]:
    """(channels, resolution) of the pictures that a model draws."""
    channels, side, _ = pipeline.latent_shape
    if pipeline.vae is None:
        return channels, side
    return pipeline.vae.config["in_channels"], side * reduction(pipeline.vae)


@torch.no_grad()
def encode_image(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """Pictures uint8 [N, C, R, R] to what the model draws: the latents' means, or the pixels themselves."""
    x = to_unit(pictures).to(pipeline.device)
    return x if pipeline.vae is None else encode(pipeline.vae, x).mean


def guided_denoiser(pipeline: Pipeline, count: int, how: Img2ImgOptions) -> Denoiser:
    """The model's denoiser for `count` pictures with classifier-free guidance, pixels clipped."""
    options = SamplingOptions(steps=how.steps, guidance_scale=how.guidance_scale, negative_prompt=how.negative)
    return pipeline.guided_denoiser([""] * count, options.resolve(pipeline))


@torch.no_grad()
def invert_latents(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: object, refine: int = 0
) -> Iterator[State]:
    """DDIM upwards from pictures x over rising times; each step then brought nearer to what the way back will undo.

    A step of DDIM down from x_u evaluates the network there, a step up to it at the level below. `refine` evaluations
    at x_u itself solve for the x_u that the step down takes to x_t, by fixed-point iteration (Pan et al. 2023).
    """
    for now, then in pairwise(levels(denoiser.schedule, times)):
        *_, state = ddim(denoiser, x, [now.t, then.t], cond)
        up = state.x
        for _ in range(refine if now.a > 0 else 0):
            p = denoiser(up, times_like(up, then.t), cond)
            up = (then.a * x + (then.s * now.a - then.a * now.s) * p.eps) / now.a
        x = up
        yield state._replace(x=up)


@torch.no_grad()
def noised_start(pipeline: Pipeline, x_0: Tensor, seeds: Sequence[int], time: int) -> Tensor:
    """Latents x_0 [B, ...] with noise of the level of that time, each from its own seed."""
    eps = initial_noise(seeds, x_0.shape[1:]).to(x_0)
    return pipeline.schedule.add_noise(x_0, eps, times_like(x_0, time))


@dataclass(frozen=True)
class Reconstruction:
    """How far reconstructed pictures are from those that were inverted: mean squared, of pixels in 0..1."""

    reconstruction: float
    first_stage: float | None  # what the autoencoder alone loses; None on pixels

    def __str__(self) -> str:
        said = f"reconstruction error {self.reconstruction:.2e} (mean squared, of pixels in 0 to 1)"
        return said if self.first_stage is None else f"{said}; the autoencoder's share {self.first_stage:.2e}"


@torch.no_grad()
def reconstruction_text(pipeline: Pipeline, pictures: Tensor, latents: Tensor, again: Tensor) -> Reconstruction:
    """What is lost of pictures uint8, whose latents an inversion and its way back turned into `again`."""
    first = None if pipeline.vae is None else mean_squared(pictures, to_bytes(decode(pipeline.vae, latents)).cpu())
    return Reconstruction(mean_squared(pictures, pipeline.pictures(again)), first)


def mean_squared(one: Tensor, other: Tensor) -> float:
    """Mean squared difference of pictures uint8, in units of the range of a pixel."""
    return float((one.float() - other.float()).div(255).square().mean())
