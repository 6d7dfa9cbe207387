"""DDIM inversion of pictures with a model of prompts or classes, and the noised pictures from which img2img starts.

Inversion and sampling back use the same timesteps, in which the clean picture stands for x_t at t = 0 (`pdae_grid`).
Sampling therefore reverses the inversion, but for an error of order 1/N in N steps, which is measured and reported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser, times_like
from ldm_kit.diffusion.pdae import pdae_grid
from ldm_kit.diffusion.posterior import levels
from ldm_kit.diffusion.respacing import Spacing, timesteps
from ldm_kit.diffusion.rng import initial_noise
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.editing.sample_options import GuidedOptions
from ldm_kit.models.consistency_names import SOLVER
from ldm_kit.models.decoding import decode_pictures, encode_pictures
from ldm_kit.models.flow_shift import flow_shift_of, shift_times
from ldm_kit.models.options import ResolvedOptions
from ldm_kit.models.pipeline import Pipeline


def inversion_times(pipeline: Pipeline, options: GuidedOptions, strength: float = 1.0) -> list[int]:
    """Return the rising timesteps of an inversion, from 0 up to a fraction `strength` of the T training timesteps.

    There are `options.steps` steps, or fewer if this part of the timesteps has fewer. If the user gave no number of
    steps, the default is reduced to T - 1 where it is larger.

    Args:
        pipeline: the model, whose number of training timesteps is T.
        options: only `steps`, the number of steps, is used.
        strength: fraction of the training timesteps, above 0 and at most 1.

    Raises:
        UserError: the user gave more than T - 1 steps, or the model is a consistency model.
    """
    if pipeline.saved.sampling.get("solver") == SOLVER:
        raise UserError(
            "this consistency model leads from noise to pictures in a few steps, and has no inverse; expected the "
            "model that it was made from, or img2img"
        )
    total, steps = pipeline.schedule_config.num_train_timesteps, options.steps
    if "steps" not in options.model_fields_set:
        steps = min(steps, total - 1)
    try:
        pdae_grid(total, steps)
    except ValueError as error:
        raise UserError(f"--steps {steps}: {error}") from None
    share = max(2, round(total * strength))
    return pdae_grid(share, min(steps, share - 1))


def options_within(options: ResolvedOptions, strength: float) -> ResolvedOptions:
    """Return `options` with a spacing that lets sampling start at a fraction `strength` of the training timesteps.

    If `strength` is below 1, `options.spacing` must be trailing, leading or linspace. Another spacing that was saved
    with the model is replaced by trailing; another spacing that the user gave is an error.

    Raises:
        UserError: `strength` is below 1 and the user gave another spacing; such a spacing covers all timesteps.
    """
    if strength == 1 or options.spacing in get_args(Spacing):
        return options
    if "spacing" in options.own:
        return options.model_copy(update={"spacing": "trailing"})
    raise UserError(
        f"--spacing {options.spacing} is for all training times, but --strength {strength:g} visits a share of them; "
        f"expected --strength 1, or --spacing {', '.join(get_args(Spacing))}"
    )


def sampling_times(pipeline: Pipeline, options: ResolvedOptions, strength: float = 1.0) -> list[int]:
    """Return the falling timesteps of sampling, from a fraction `strength` of all training timesteps to clean data, -1.

    There are `options.steps` steps, or fewer if this part of the timesteps has fewer. `options` must come from
    `options_within`.

    Args:
        pipeline: the model.
        options: at strength 1, their `timesteps` are returned; at lower strengths, `steps` and `spacing` are used.
        strength: fraction of the training timesteps, above 0 and at most 1.
    """
    if strength == 1:
        return list(options.timesteps)
    share = max(1, round(pipeline.schedule_config.num_train_timesteps * strength))
    times = timesteps(share, min(options.steps, share), options.spacing)
    return list(shift_times(times, share, flow_shift_of(options, pipeline)))


@torch.no_grad()
def encode_image(pipeline: Pipeline, pictures: Tensor) -> Tensor:
    """Encode pictures uint8 [N, C, R, R] as the means of their latents' distributions [N, Z, h, w].

    For a model without VAE the latents are the pixels, scaled to [-1, 1].
    """
    return encode_pictures(pipeline.vae, pictures.to(pipeline.device))


@torch.no_grad()
def invert_latents(
    denoiser: Denoiser, x: Tensor, times: Sequence[int], cond: object, refine: int = 0
) -> Iterator[State]:
    """Invert x [B, ...] by DDIM over rising timesteps; `refine` brings each step closer to the inverse of sampling.

    A sampling step from x_u to the less noisy x_t evaluates the network at x_u; a plain inversion step evaluates it at
    x_t. The refinement finds the x_u that the sampling step takes to x_t, by fixed-point iteration (Pan et al. 2023).

    Args:
        denoiser: predicts x_0 and eps.
        x: clean pictures or latents [B, ...], which stand at the first timestep.
        times: rising timesteps, such as `inversion_times` returns.
        cond: condition in the form that the denoiser takes.
        refine: iterations in each step, each an evaluation of the network at x_u; 0 is plain DDIM inversion.

    Yields:
        The state after each step; x of the last state is the inverted x, at the last timestep.
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
    """Return latents x_0 [B, ...] noised to timestep `time` of the model `pipeline`.

    `seeds` has a seed for each of the B samples, from which the sample's noise is drawn.
    """
    eps = initial_noise(seeds, x_0.shape[1:]).to(x_0)
    return pipeline.schedule.add_noise(x_0, eps, times_like(x_0, time))


@dataclass(frozen=True)
class ReconstructionError:
    """Mean squared errors between pictures, with pixels in 0..1, and their reconstructions after inversion."""

    total: float  # error after inversion, sampling and (in latent models) decoding
    autoencoder: float | None  # error of the autoencoder alone; None for a model of pixels

    def __str__(self) -> str:
        text = f"reconstruction error {self.total:.2e} (mean squared, of pixels in 0 to 1)"
        return text if self.autoencoder is None else f"{text}; the autoencoder's share {self.autoencoder:.2e}"


@torch.no_grad()
def reconstruction_error(
    pipeline: Pipeline, pictures: Tensor, latents: Tensor, reconstructed: Tensor
) -> ReconstructionError:
    """Measure the error of pictures that were inverted and sampled back.

    Args:
        pipeline: the model.
        pictures: the original pictures, uint8 [N, C, R, R].
        latents: latents [N, Z, h, w] of the original pictures, as `encode_image` returns them.
        reconstructed: latents [N, Z, h, w] that were sampled back from the inverted ones.
    """
    autoencoder = None
    if pipeline.vae is not None:
        autoencoder = mean_squared(pictures, decode_pictures(pipeline.vae, latents))
    return ReconstructionError(mean_squared(pictures, pipeline.pictures(reconstructed)), autoencoder)


def mean_squared(one: Tensor, other: Tensor) -> float:
    """Return the mean squared difference of two uint8 tensors of pictures of one shape, with pixels scaled to 0..1."""
    return float((one.float() - other.float()).div(255).square().mean())
