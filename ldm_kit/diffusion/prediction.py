"""Conversion between what a network predicts (eps, x_0, v or flow's velocity) and the pair x_0, eps.

Samplers and guidance work with the pair, and so for every prediction type. Throughout, x_t = a_t x_0 + s_t eps.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PredictionType = Literal["eps", "x0", "v", "flow"]


class Prediction(NamedTuple):
    """A denoiser's prediction from x_t, as x_0 and as eps; the two satisfy x_t = a_t x_0 + s_t eps.

    Args:
        x_0: expected clean data, [B, ...].
        eps: expected noise, in the shape of x_0.
        fraction: the learned variance of the reverse step, in the shape of x_0: 0 gives the posterior's log variance,
            1 gives log beta, values between and beyond them interpolate and extrapolate (Nichol & Dhariwal 2021,
            eq. 15). None: the network does not learn the variance.
    """

    x_0: Tensor
    eps: Tensor
    fraction: Tensor | None = None

    def lerp(self, other: "Prediction", weight: float | Tensor) -> "Prediction":
        """Return (1 - weight) self + weight other, for x_0 and for eps; a weight above 1 extrapolates.

        Args:
            other: a prediction from the same x_t.
            weight: a number, or a tensor that broadcasts to x_0.

        Returns:
            The interpolated prediction, with the `fraction` of self.
        """
        if isinstance(weight, float) and abs(weight) > torch.finfo(self.x_0.dtype).max:
            weight = math.inf  # torch refuses numbers beyond the dtype's range, but takes infinity
        x_0, eps = torch.lerp(self.x_0, other.x_0, weight), torch.lerp(self.eps, other.eps, weight)
        return Prediction(x_0, eps, self.fraction)


def expand_like(c: Tensor, x: Tensor) -> Tensor:
    """Reshape coefficients c [B] to [B, 1, 1, ...], which broadcasts to x [B, ...], in the dtype and on x's device."""
    return cast_like(c, x).view(-1, *[1] * (x.dim() - 1))


def cast_like(c: Tensor, x: Tensor) -> Tensor:
    """Return c in the dtype and on the device of x; c is cast first, then moved, as the device may lack float64."""
    return c.to(x.dtype).to(x.device)


def split_variance(out: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of a network that also learns the variance into the prediction and `Prediction.fraction`.

    Args:
        out: [B, 2 C, ...]; the second half of the channels is 2 fraction - 1, where fraction 0 stands for the
            posterior's log variance and 1 for log beta (Nichol & Dhariwal 2021, eq. 15).

    Returns:
        The first half of the channels (eps, x_0, v or velocity) and the fraction, each [B, C, ...].
    """
    out, v = out.chunk(2, dim=1)
    return out, (v + 1) / 2


def from_eps(eps: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return the prediction from eps and noisy data x = a x_0 + s eps (Ho et al. 2020).

    x_0 = (x - s eps) / a, undefined for a = 0. `a` and `s` must broadcast to x.
    """
    return Prediction((x - s * eps) / a, eps)


def from_x0(x_0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return the prediction from x_0 and noisy data x = a x_0 + s eps.

    eps = (x - a x_0) / s, undefined for s = 0. `a` and `s` must broadcast to x.
    """
    return Prediction(x_0, (x - a * x_0) / s)


def from_v(v: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return the prediction from v = a eps - s x_0 and noisy data x = a x_0 + s eps (Salimans & Ho 2022, appendix D).

    x_0 = a x - s v and eps = s x + a v, for schedules with a^2 + s^2 = 1. `a` and `s` must broadcast to x.
    """
    return Prediction(a * x - s * v, s * x + a * v)


def from_flow(u: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return the prediction from flow's velocity u = eps - x_0 and noisy data x = a x_0 + s eps (Liu et al. 2023).

    x_0 = x - s u and eps = x + a u, for schedules with a + s = 1. `a` and `s` must broadcast to x.
    """
    return Prediction(x - s * u, x + a * u)


def to_prediction(prediction_type: PredictionType, out: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Convert a network's output to x_0 and eps.

    Args:
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.
        out: the network's output, in the shape of x.
        x: noisy data x_t = a_t x_0 + s_t eps, [B, ...].
        a: signal level a_t [B].
        s: noise level s_t [B].
    """
    views = {"eps": from_eps, "x0": from_x0, "v": from_v, "flow": from_flow}
    return views[prediction_type](out, x, expand_like(a, x), expand_like(s, x))


def from_prediction(prediction_type: PredictionType, p: Prediction, a: Tensor, s: Tensor) -> Tensor:
    """Convert x_0 and eps to the network's output; from the true x_0 and eps this gives the training target.

    Args:
        prediction_type: what the network predicts: eps, x_0, v or flow's velocity.
        p: x_0 and eps, [B, ...] each.
        a: signal level a_t [B] in x_t = a_t x_0 + s_t eps.
        s: noise level s_t [B].
    """
    match prediction_type:
        case "eps":
            return p.eps
        case "x0":
            return p.x_0
        case "v":
            return expand_like(a, p.eps) * p.eps - expand_like(s, p.x_0) * p.x_0
        case "flow":
            return p.eps - p.x_0
