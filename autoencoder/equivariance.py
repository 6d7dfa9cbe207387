"""Equivariance regularisation of latents, after which diffusion models learn faster (Kouzelis et al. 2025, "EQ-VAE").

In a share of the steps the latent is scaled down and rotated before it is decoded, and the loss compares the result
with the picture scaled and rotated in the same way. Some of the other steps train on pictures that are scaled down
before they are encoded.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

DRAWS = 4  # random numbers that a step needs


class Move(NamedTuple):
    """A transform of latents or pictures: resize height and width by the factor side / of, then rotate.

    The rotation is by `turns` quarter turns. `of` and `side` are a square latent's sides before and after resizing.
    """

    side: int
    of: int
    turns: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return latents or pictures [B, C, H, W], scaled and rotated; computed in float32 or better.

        H and W must be multiples of the field `of`.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.side != self.of:
            rows, columns = (_resized(length, length * self.side // self.of).to(x) for length in x.shape[-2:])
            with torch.autocast(x.device.type, enabled=False):
                x = rows @ x @ columns.T
        return torch.rot90(x, self.turns, (-2, -1))


def moved_weights(weight: Tensor, *moves: Move | None) -> Tensor:
    """Return weights [B, 1, H, W] in [0, 1] of pixels after the transforms of their pictures (None: no transform)."""
    for move in moves:
        weight = weight if move is None else move(weight)
    return weight.clamp(0, 1)


@lru_cache(maxsize=256)
def _resized(old: int, new: int) -> Tensor:
    """Return the matrix [new, old] that resizes a line of `old` pixels to `new` by antialiased bilinear interpolation.

    A matrix product has a deterministic gradient on every device; F.interpolate has not.
    """
    return F.interpolate(torch.eye(old)[None, None], size=(new, old), mode="bilinear", antialias=True)[0, 0]


class EquivarianceConfig(BaseModel):
    """Settings of EQ-VAE's regularisation: how often, and down to what scale, training transforms latents.

    `share` of the steps decode a latent that is scaled down and rotated; `small` of the other steps train on pictures
    that are scaled down before they are encoded. `least` is the smallest scale, as a fraction of the side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(default=0.5, ge=0, le=1, description="Share of steps that decode a transformed latent.")
    small: float = Field(
        default=0.25, ge=0, le=1, description="Share of the other steps that first scale the pictures down."
    )
    least: float = Field(default=0.25, gt=0, lt=1, description="Smallest scale, as a fraction of the side.")

    def smallest(self, side: int) -> int:
        """Return the smallest side to which latents of side `side` may be scaled."""
        return math.ceil(self.least * side)

    def drawn(self, u: Sequence[float], side: int) -> tuple[Move | None, Move | None]:
        """Draw the transforms of a training step.

        Args:
            u: `DRAWS` (4) random numbers in [0, 1).
            side: side of the latents [B, Z, side, side].

        Returns:
            The transform of the pictures before they are encoded, and that of the latents before they are decoded;
            None: no transform.
        """
        low = self.smallest(side)
        scaled = low + int(u[1] * (side - low))
        if side < 2 or scaled == side:  # nothing is smaller
            return None, None
        if u[0] < self.share:
            return None, Move(scaled, side, 1 + int(u[2] * 3))
        return (Move(scaled, side) if u[3] < self.small else None), None
