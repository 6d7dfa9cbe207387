"""What a network predicts, and its two views: x_0 and eps.

Each parameterisation is one line in each direction; samplers, guidance and losses do not depend on which one was used.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PredictionType = Literal["eps", "x0", "v", "flow"]


class Prediction(NamedTuple):
    """The two views of a denoiser's answer, which satisfy x_t = a_t x_0 + s_t eps.

    Args:
        x_0: expected clean data, [B, ...].
        eps: expected noise, like x_0.
        fraction: where the log variance of the reverse step lies between the posterior's (0) and beta's (1), not
            clamped, like x_0 (Nichol & Dhariwal 2021, eq. 15); None: the network does not learn it.
    """

    x_0: Tensor
    eps: Tensor
    fraction: Tensor | None = None

    def lerp(self, other: "Prediction", weight: float | Tensor) -> "Prediction":
        """Return (1 - weight) self + weight other in both views; a weight above 1 extrapolates.

        Args:
            other: a prediction from the same x_t.
            weight: a number, or a tensor that broadcasts to x_0.

        Returns:
            The mixed views, with the `fraction` of self.
        """
        if isinstance(weight, float) and abs(weight) > torch.finfo(self.x_0.dtype).max:
            weight = math.inf  # which torch takes as a number, and whose result is not finite
        x_0, eps = torch.lerp(self.x_0, other.x_0, weight), torch.lerp(self.eps, other.eps, weight)
        return Prediction(x_0, eps, self.fraction)


def expand_like(c: Tensor, x: Tensor) -> Tensor:
    """Return coefficients [B] as [B, 1, 1, ...] in the dtype and on the device of x [B, ...], to multiply it with."""
    return cast_like(c, x).view(-1, *[1] * (x.dim() - 1))


def cast_like(c: Tensor, x: Tensor) -> Tensor:
    """Return numbers cast to the dtype of x and then moved to its device, which may have no float64."""
    return c.to(x.dtype).to(x.device)


def split_variance(out: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of a network that learns its variance.

    Args:
        out: [B, 2 C, ...]; the second half of the channels is v = 2 fraction - 1 (Nichol & Dhariwal 2021, eq. 15).

    Returns:
        The prediction's output [B, C, ...], and the fraction, like it.
    """
    out, v = out.chunk(2, dim=1)
    return out, (v + 1) / 2


def from_eps(eps: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return x_0 = (x_t - s eps) / a (Ho et al. 2020, eq. 9); undefined where a = 0, in pure noise."""
    return Prediction((x - s * eps) / a, eps)


def from_x0(x_0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return eps = (x_t - a x_0) / s; undefined where s = 0, in clean data."""
    return Prediction(x_0, (x - a * x_0) / s)


def from_v(v: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return x_0 = a x_t - s v and eps = s x_t + a v, of v = a eps - s x_0 (Salimans & Ho 2022, appendix D).

    Needs a^2 + s^2 = 1.
    """
    return Prediction(a * x - s * v, s * x + a * v)


def from_flow(u: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return x_0 = x_t - s u and eps = x_t + a u, of the velocity u = eps - x_0 (Liu et al. 2023); needs a + s = 1."""
    return Prediction(x - s * u, x + a * u)


def to_prediction(prediction_type: PredictionType, out: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Return the prediction that a network's output stands for.

    Args:
        prediction_type: what the network predicts.
        out: its output, like x.
        x: noisy data x_t [B, ...].
        a: a_t [B].
        s: s_t [B].
    """
    views = {"eps": from_eps, "x0": from_x0, "v": from_v, "flow": from_flow}
    return views[prediction_type](out, x, expand_like(a, x), expand_like(s, x))


def from_prediction(prediction_type: PredictionType, p: Prediction, a: Tensor, s: Tensor) -> Tensor:
    """Return the network output that stands for a prediction; for the true x_0 and eps it is the training target.

    Args:
        prediction_type: what the network predicts.
        p: views [B, ...] at x_t.
        a: a_t [B].
        s: s_t [B].
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
