"""Denoisers, the interface between networks, guidance and samplers: functions of x_t to a prediction of x_0 and eps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, split_variance, to_prediction
from ldm_kit.diffusion.schedule import Schedule


class Denoiser(Protocol):
    """A function of noisy data x_t to a prediction of x_0 and eps, together with the noise schedule of x_t."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of x_t."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        """Predict x_0 and eps from noisy data.

        Args:
            x: noisy data x_t [B, ...].
            t: integer timesteps [B].
            cond: condition in the form that the network takes; None: unconditional.
        """
        ...


class Gradient(Protocol):
    """Classifier guidance's gradient: grad_x log p(label | x_t), times the guidance scale."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the gradient at noisy data x [B, ...] and integer timesteps t [B]; its shape is that of x."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network as a denoiser: the network's output, cast to the dtype of x, is converted to x_0 and eps.

    Args:
        network: function of x_t [B, C, ...], t [B] and condition to an output in the shape of x_t.
        schedule: the noise schedule that the network was trained on.
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.
        learned_range: whether the network learns the variance of the reverse step. The output then has 2 C channels.
            The second half interpolates the log variance: -1 gives the posterior's variance, 1 gives beta (Nichol &
            Dhariwal 2021, eq. 15).
    """

    network: Callable[[Tensor, Tensor, Any], Tensor]
    schedule: Schedule
    prediction_type: PredictionType
    learned_range: bool = False

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        a, s = self.schedule.alpha_sigma(t)
        out, fraction = self.network(x, t, cond).to(x.dtype), None
        if self.learned_range:
            out, fraction = split_variance(out)
        return to_prediction(self.prediction_type, out, x, a, s)._replace(fraction=fraction)


@dataclass(frozen=True, eq=False)
class Clipped:
    """A denoiser that clips another denoiser's x_0 to [low, high] and recomputes eps from the clipped x_0.

    Args:
        denoiser: the denoiser whose x_0 is clipped.
        low: least value of x_0.
        high: greatest value of x_0.
    """

    denoiser: Denoiser
    low: float = -1.0
    high: float = 1.0

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.alpha_sigma(t)
        return with_output(p, p.x_0.clamp(self.low, self.high), x, a, s, prediction_type="x0")


@dataclass(frozen=True, eq=False)
class Thresholded:
    """A denoiser with dynamic thresholding, for models of pixels in [-1, 1] (Saharia et al. 2022, section 2.3).

    The threshold r of a sample is the `quantile` of its values |x_0|, but at least 1 and at most `largest`. x_0 is
    clipped to [-r, r] and divided by r; eps is recomputed from the result. Latents have no fixed range: do not use it
    for them.

    Args:
        denoiser: the denoiser whose x_0 is thresholded.
        quantile: fraction of a sample's values |x_0| that are below the threshold, in (0, 1].
        largest: upper limit of r, 1 or more; None: no limit.

    Raises:
        ValueError: `quantile` or `largest` is out of range.
    """

    denoiser: Denoiser
    quantile: float = 0.995
    largest: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.quantile <= 1 and (self.largest is None or self.largest >= 1)):
            raise ValueError(
                f"expected a quantile in (0, 1] and a largest of 1 or more, got {self.quantile} and {self.largest}"
            )

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.alpha_sigma(t)
        size = exact(p.x_0).abs().flatten(1).float()  # torch's quantile works in float64 inside
        reach = torch.quantile(size, self.quantile, dim=1).clamp(1, self.largest)
        limit = expand_like(reach, p.x_0)
        return with_output(p, p.x_0.clamp(-limit, limit) / limit, x, a, s, prediction_type="x0")


def with_output(
    p: Prediction, out: Tensor, x: Tensor, a: Tensor, s: Tensor, *, prediction_type: PredictionType
) -> Prediction:
    """Return the prediction (x_0, eps) that belongs to a changed network output, for example to a clipped x_0.

    What the output does not determine is taken from the prediction before the change. This is always the learned
    variance `fraction`. It is also x_0 where the output is eps and a = 0 (pure noise), and eps where the output is x_0
    and s = 0 (clean data).

    Args:
        p: prediction before the change, x_0 and eps [B, ...].
        out: the changed output, in the shape of x.
        x: noisy data x_t [B, ...].
        a: signal level a_t [B] in x_t = a_t x_0 + s_t eps.
        s: noise level s_t [B].
        prediction_type: what the output is: eps, x_0, v or flow's velocity.
    """
    derived = to_prediction(prediction_type, out, x, a, s)
    x_0 = torch.where(expand_like(a, x) > 0, derived.x_0, p.x_0) if prediction_type == "eps" else derived.x_0
    eps = torch.where(expand_like(s, x) > 0, derived.eps, p.eps) if prediction_type == "x0" else derived.eps
    return Prediction(x_0, eps, p.fraction)


def times_like(x: Tensor, t: int) -> Tensor:
    """Return int64 [B] filled with the timestep t, on the device of x [B, ...], to call a denoiser with."""
    return torch.full((len(x),), t, dtype=torch.long, device=x.device)
