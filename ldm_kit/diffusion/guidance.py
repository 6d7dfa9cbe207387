"""Guidance: denoisers around denoisers, so that they compose and no sampler knows that they exist."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Extrapolate from the null condition through the wished one (Ho & Salimans 2022, eq. 6).

    `scale` 1 is no guidance, as in diffusers; the null may also be a negative prompt.
    """

    denoiser: Denoiser
    null: Any
    scale: float

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        yes = self.denoiser(x, t, cond)
        if self.scale == 1:
            return yes
        no = self.denoiser(x, t, self.null)
        x_0, eps = torch.lerp(no.x_0, yes.x_0, self.scale), torch.lerp(no.eps, yes.eps, self.scale)
        return Prediction(x_0, eps, yes.fraction)
