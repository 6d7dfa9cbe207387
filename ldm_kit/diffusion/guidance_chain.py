"""Classifier-free guidance by several conditions a scale for each, and the protocol of such guidance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, with_output
from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, from_prediction
from ldm_kit.diffusion.schedule import Schedule


class ClassifierFreeGuidance(Protocol):
    """A denoiser that extrapolates from predictions under fewer conditions to that under all of them."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        ...

    @property
    def guides(self) -> bool:
        """Whether the prediction differs from the model's own."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        """Return the guided prediction for noisy data x [B, ...] at timesteps t [B] under the condition `cond`."""
        ...

    def predictions(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, ...]:
        """Return the model's prediction under the condition `cond`, then those under fewer conditions."""
        ...

    def extrapolate(self, conditional: Prediction, /, *others: Prediction) -> Prediction:
        """Return the guided prediction from those that `predictions` returns."""
        ...


@dataclass(frozen=True, eq=False)
class GuidanceChain:
    """A denoiser with classifier-free guidance by several conditions, a scale for each (Brooks et al. 2023, eq. 3).

    Let D_0 be the model's prediction under no condition, D_1 that under the first condition alone, D_2 that under the
    first two, and so on. The guided x_0 and eps are D_0 + s_1 (D_1 - D_0) + s_2 (D_2 - D_1) + ... With equal scales s
    this is D_0 + s (D_P - D_0), as in `ClassifierFree`.

    Args:
        denoiser: the model, which is evaluated once under each of the P + 1 sets of conditions.
        partial: the sets of the first 0, 1, ..., P - 1 conditions; the set of all P is the argument of a call.
        scales: the guidance scales s_1, ..., s_P.

    Raises:
        ValueError: there is not one scale for each set.
    """

    denoiser: Denoiser
    partial: Sequence[Any]
    scales: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.partial) != len(self.scales):
            raise ValueError(f"got {len(self.scales)} scales for {len(self.partial)} conditions; expected one for each")

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    @property
    def guides(self) -> bool:
        """Whether the prediction differs from the model's own."""
        return any(scale != 1 for scale in self.scales)

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        if not self.guides:
            return self.denoiser(x, t, cond)
        return self.extrapolate(*self.predictions(x, t, cond))

    def predictions(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, ...]:
        """Return the model's predictions under all conditions `cond`, and then under each of `partial`.

        Args:
            x: noisy data x_t [B, ...].
            t: timesteps [B].
            cond: all conditions, in the form that the denoiser takes.
        """
        return tuple(self.denoiser(x, t, each) for each in (cond, *self.partial))

    def extrapolate(self, conditional: Prediction, /, *partial: Prediction) -> Prediction:
        """Return the guided prediction from those that `predictions` returns.

        The learned variance (`Prediction.fraction`) is that of `conditional`.
        """
        x_0, eps = partial[0].x_0, partial[0].eps
        for scale, (before, after) in zip(self.scales, pairwise([*partial, conditional]), strict=True):
            x_0, eps = x_0 + scale * (after.x_0 - before.x_0), eps + scale * (after.eps - before.eps)
        return Prediction(x_0, eps, conditional.fraction)


@dataclass(frozen=True, eq=False)
class Rescaled:
    """Classifier-free guidance, rescaled to the conditional output's standard deviation (Lin et al. 2024, eq. 15, 16).

    Each sample's guided output `out` becomes out (1 + phi (std(conditional) / std(out) - 1)), where `conditional` is
    the output under the condition alone and std is taken over the sample. Outputs are of the network's prediction type:
    rescaling eps would do nothing for a v or x_0 network in pure noise, where eps is x_t with and without guidance. x_0
    and eps are then computed from the rescaled output.

    Nothing is rescaled at guidance scale 1, or where std(out) is 0, as for a zero-initialised network.

    Args:
        guided: the classifier-free guidance.
        phi: strength of the rescaling, from 0 (none) to 1 (the standard deviation of the conditional output).
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.

    Raises:
        ValueError: `phi` is outside 0 to 1.
    """

    guided: ClassifierFreeGuidance
    phi: float
    prediction_type: PredictionType

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"guidance is rescaled by a share from 0 to 1, got {self.phi}")

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.guided.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        if not self.guided.guides or self.phi == 0:
            return self.guided(x, t, cond)
        conditional, *others = self.guided.predictions(x, t, cond)
        p = self.guided.extrapolate(conditional, *others)
        a, s = self.schedule.alpha_sigma(t)
        out, reference = (from_prediction(self.prediction_type, each, a, s) for each in (p, conditional))
        deviation = out.flatten(1).std(1)
        ratio = torch.where(deviation > 0, reference.flatten(1).std(1) / deviation, 1.0)
        rescaled = out * expand_like(1 + self.phi * (ratio - 1), x)
        return with_output(p, rescaled, x, a, s, prediction_type=self.prediction_type)
