"""A batch of cached latents at its times: what every method of stage 2 shows its network."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.diffusion import rng
from ldm_kit.diffusion.schedule import Schedule


class NoisedBatch(NamedTuple):
    """A batch of latents (or pixels) at their times."""

    x_0: Tensor  # [B, Z, h, w]
    eps: Tensor  # like x_0
    x_t: Tensor  # like x_0
    t: Tensor  # [B]


def noise_batch(batch: Mapping[str, Any], t: Tensor, seed: int, schedule: Schedule) -> NoisedBatch:
    """A batch's latents, drawn from their posteriors (`mean`, `logvar` [B, Z, h, w]) and noised to times t [B].

    Both draws are addressed by `seed` and the batch's `position` [B], whatever the batch.
    """
    position, mean = batch["position"], batch["mean"]
    draw = rng.normal(seed, "posterior", position, mean.shape[1:])
    x_0 = mean + torch.exp(batch["logvar"] / 2) * draw
    eps = rng.normal(seed, "noise", position, mean.shape[1:])
    return NoisedBatch(x_0, eps, schedule.add_noise(x_0, eps, t), t)
