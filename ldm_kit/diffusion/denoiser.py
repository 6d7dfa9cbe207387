"""The one interface between networks, guidance and samplers: from x_t to a prediction of x_0 and eps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_kit.diffusion.float64 import exact
from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, split_variance, to_prediction
from ldm_kit.diffusion.schedule import Schedule


class Denoiser(Protocol):
    """A function from noisy data to a prediction of x_0 and eps, with the noise schedule that it belongs to."""

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of x_t."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        """Predict x_0 and eps.

        Args:
            x: noisy data x_t [B, ...].
            t: integer timesteps [B].
            cond: a condition, in whatever form the network takes it; None: unconditional.
        """
        ...


class Gradient(Protocol):
    """The gradient of a log-probability with respect to x_t, times a scale, for classifier guidance."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the gradient at noisy data x [B, ...] and integer timesteps t [B], like x."""
        ...


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network as a denoiser; it is called in its own dtype, and the prediction is in that of x.

    Args:
        network: (x_t [B, C, ...], t [B], condition) to an output like x_t.
        schedule: the noise schedule that the network was trained on.
        prediction_type: what the output stands for.
        learned_range: whether the output has twice the channels, the second half being v = 2 fraction - 1 (Nichol &
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
    """A denoiser whose x_0 is clipped to [low, high]; eps is derived from the clipped x_0, so that both views agree.

    Args:
        denoiser: what is clipped.
        low: least value of x_0.
        high: greatest value of x_0.
    """

    denoiser: Denoiser
    low: float = -1.0
    high: float = 1.0

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.alpha_sigma(t)
        return with_output(p, p.x_0.clamp(self.low, self.high), x, a, s, prediction_type="x0")


@dataclass(frozen=True, eq=False)
class Thresholded:
    """A denoiser with dynamic thresholding, for pixel models (Saharia et al. 2022, section 2.3).

    The x_0 of each sample is clipped to [-r, r] and divided by r, the `quantile` of its |x_0|, limited to
    1 .. `largest`; eps is derived from the result. Not for latents, which have no natural range.

    Args:
        denoiser: what is thresholded.
        quantile: share of the values that lie within r, in (0, 1].
        largest: upper limit of r, 1 or more; None: no limit.

    Raises:
        ValueError: `quantile` or `largest` out of range.
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
        """Noise schedule of the inner denoiser."""
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
    """Return the prediction of a changed network output, with the `fraction` of the old one.

    A view that the output does not determine is taken from the old prediction: x_0 where a = 0 and the output is eps,
    and eps where s = 0 and the output is x_0.

    Args:
        p: the old prediction, views [B, ...].
        out: the changed output, like x.
        x: noisy data x_t [B, ...].
        a: a_t [B].
        s: s_t [B].
        prediction_type: what the output stands for.
    """
    derived = to_prediction(prediction_type, out, x, a, s)
    x_0 = torch.where(expand_like(a, x) > 0, derived.x_0, p.x_0) if prediction_type == "eps" else derived.x_0
    eps = torch.where(expand_like(s, x) > 0, derived.eps, p.eps) if prediction_type == "x0" else derived.eps
    return Prediction(x_0, eps, p.fraction)


def times_like(x: Tensor, t: int) -> Tensor:
    """Return the integer timestep t for every sample of x, int64 [B]."""
    return torch.full((len(x),), t, dtype=torch.long, device=x.device)
