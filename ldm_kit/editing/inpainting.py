"""Inpainting with any diffusion model (RePaint, Lugmayr et al. 2022); pixels outside the mask stay bit for bit."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.posterior import chain, levels
from ldm_kit.diffusion.rng import step_noise
from ldm_kit.diffusion.samplers import State, ddim


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask bool [1, 1, h, w] for latents of a size: a latent is masked if any of its pixels [R, R] is."""
    return adaptive_max_pool2d(mask.float()[None, None], size) > 0


@torch.no_grad()
def inpaint_latents(
    denoiser: Denoiser,
    x_0: Tensor,
    mask: Tensor,
    times: Sequence[int],
    cond: object = None,
    *,
    seeds: Sequence[int],
    resample: int = 1,
) -> Iterator[State]:
    """Sample x_0 [B, ...] again where the mask is set; elsewhere x_t is x_0 with noise, at every level.

    Each step is DDPM's and is repeated `resample` times, with noise added in between, so that the new part fits the
    known one (Lugmayr et al. 2022, algorithm 1). A picture depends on its seed alone.

    Args:
        denoiser: of any schedule.
        x_0: clean pictures or latents.
        mask: bool, [1, 1, h, w] or like x_0.
        times: falling, from (nearly) pure noise to -1.
        cond: as the denoiser takes it.
        seeds: one for each picture.
        resample: how often each step is taken; 1 is once.

    Yields:
        The state after each step.
    """
    noise = _NoiseStream(seeds, x_0)
    x = noise.next()
    steps = zip(pairwise(levels(denoiser.schedule, times)), chain(denoiser.schedule, times), strict=True)
    for (level, next_level), posterior in steps:
        repeats = 1 if next_level.t < 0 else resample
        for repeat in range(repeats):
            if repeat > 0:
                x = posterior.alpha_ratio * x + posterior.beta**0.5 * noise.next()
            for state in ddim(denoiser, x, [level.t, next_level.t], cond, eta=1.0, noise=noise):
                x = torch.where(mask, state.x, next_level.a * x_0 + next_level.s * noise.next())
                if repeat + 1 == repeats:
                    yield state._replace(x=x)


class _NoiseStream:
    """A stream of standard normal batches, each picture's from its own seed."""

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self.seeds, self.like, self.count = seeds, like, 0

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        """Return the next batch, with the arguments that a sampler passes."""
        return self.next()

    def next(self) -> Tensor:
        """Return the next batch, shaped like the pictures."""
        self.count += 1
        return step_noise(self.seeds, self.count, self.like.shape[1:]).to(self.like)


def composite(picture: Tensor, inpainted: Tensor, mask: Tensor) -> Tensor:
    """Combine inpainted pictures uint8 [N, C, R, R] within a mask bool [R, R] with one picture [C, R, R] outside."""
    return torch.where(mask, inpainted, picture)
