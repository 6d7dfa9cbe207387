"""Painting a masked part of a picture anew with any diffusion model, the rest kept to the last bit."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.posterior import chain, levels
from ldm_kit.diffusion.rng import step_noise
from ldm_kit.diffusion.samplers import State, ddim


def latent_mask(mask: Tensor, side: tuple[int, int]) -> Tensor:
    """A mask bool [R, R] for latents of a size: a latent is painted anew if any of its pixels is, [1, 1, h, w]."""
    return adaptive_max_pool2d(mask.float()[None, None], side) > 0


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
    """Draw x_0 [B, ...] anew where the mask is set; elsewhere it is given its own noise at every level.

    Each step is DDPM's, and may be gone `resample` times, back up by noise in between, so that what is new gets to fit
    what is kept (Lugmayr et al. 2022, algorithm 1). A picture depends on its seed alone.

    Args:
        denoiser: of any schedule.
        x_0: clean pictures or latents.
        mask: bool, [1, 1, h, w] or like x_0.
        times: falling, from (nearly) pure noise to -1.
        cond: as the denoiser takes it.
        seeds: one for each picture.
        resample: how often each step is gone, 1 is once.
    """
    draws = _Draws(seeds, x_0)
    x = draws.next()
    steps = zip(pairwise(levels(denoiser.schedule, times)), chain(denoiser.schedule, times), strict=True)
    for (now, then), up in steps:
        for again in range(1 if then.t < 0 else resample):
            if again:
                x = up.alpha_ratio * x + up.beta**0.5 * draws.next()
            for state in ddim(denoiser, x, [now.t, then.t], cond, eta=1.0, noise=draws):
                x = torch.where(mask, state.x, then.a * x_0 + then.s * draws.next())
                if again + 1 == resample or then.t < 0:
                    yield state._replace(x=x)


class _Draws:
    """One batch of noise after another, each picture's from its own seed."""

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self.seeds, self.like, self.count = seeds, like, 0

    def __call__(self, step: int, shape: Sequence[int]) -> Tensor:
        """The same, as a sampler asks for it."""
        return self.next()

    def next(self) -> Tensor:
        """Standard normal numbers like the pictures."""
        self.count += 1
        return step_noise(self.seeds, self.count, self.like.shape[1:]).to(self.like)


def composite(picture: Tensor, drawn: Tensor, mask: Tensor) -> Tensor:
    """Drawn pictures uint8 [N, C, R, R] within the mask bool [R, R], one picture [C, R, R] outside."""
    return torch.where(mask, drawn, picture)
