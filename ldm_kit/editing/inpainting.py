"""Inpainting with any diffusion model (RePaint, Lugmayr et al. 2022).

Pixels outside the mask keep their exact values.
"""

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
    """Scale a mask of pixels, bool [R, R], to latents of a size (h, w); return bool [1, 1, h, w].

    A position of the latent is masked if any of the pixels in it is.
    """
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
    """Sample pictures or latents again where the mask is True; elsewhere x_t is x_0 noised to the level of timestep t.

    Each step is an ancestral (DDPM) step and is taken `resample` times, with noise added in between, so that the
    sampled part fits the part that is kept (Lugmayr et al. 2022, algorithm 1). The last step, to clean data, is taken
    once. The noise of each sample depends on its own seed alone.

    Args:
        denoiser: the model, with a noise schedule of any kind.
        x_0: clean pictures or latents [B, C, h, w].
        mask: bool [1, 1, h, w] or of the shape of x_0, True where x_0 is sampled again.
        times: falling timesteps, from (nearly) pure noise to -1, which is clean data.
        cond: condition in the form that the denoiser takes; None: no condition.
        seeds: one for each of the B samples.
        resample: how often each step is taken, 1 or more.

    Yields:
        The state after each step has been taken for the last time.
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
    """A stream of batches of standard normal noise [B, ...]; each sample's noise is drawn from the sample's own seed.

    `seeds` are the B seeds; shape, dtype and device of the noise are those of the tensor `like` [B, ...].
    """

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self.seeds, self.like, self.count = seeds, like, 0

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        """Return the next batch of noise. Samplers pass `step` and `shape`, which are not needed here."""
        return self.next()

    def next(self) -> Tensor:
        """Return the next batch of noise, in the shape, dtype and device of `like`."""
        self.count += 1
        return step_noise(self.seeds, self.count, self.like.shape[1:]).to(self.like)


def composite(picture: Tensor, inpainted: Tensor, mask: Tensor) -> Tensor:
    """Return pictures uint8 [N, C, R, R] that are inpainted inside a mask, and equal the original outside it.

    Args:
        picture: the original, uint8 [C, R, R].
        inpainted: the N inpainted pictures.
        mask: bool [R, R], True where the inpainted pictures are taken.
    """
    return torch.where(mask, inpainted, picture)
