"""Classifier-free guidance by several conditions a scale for each, and the protocol of such guidance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Prediction
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
