"""What a network predicts, and its two views: x_0 and eps.

Each parameterisation is one line each way; samplers, guidance and losses never ask which one was used.
"""

from typing import Literal, NamedTuple

from torch import Tensor

PredictionType = Literal["eps", "x0", "v", "flow"]


class Prediction(NamedTuple):
    """Both views of one fact, x_t = a x_0 + s eps; and, where the network learns it, the variance of its way down.

    `fraction` [like x_0] says where the log variance lies between the posterior's (0) and beta's (1), not clamped
    (Nichol & Dhariwal 2021, eq. 15); None: not learned.
    """

    x_0: Tensor
    eps: Tensor
    fraction: Tensor | None = None


def expand_like(c: Tensor, x: Tensor) -> Tensor:
    """Coefficients [B] as [B, 1, 1, ...] in the dtype of `x`, to multiply pictures [B, ...]."""
    return c.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))


def from_eps(eps: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """Ho et al. 2020, eq. 9. Undefined at a = 0 (zero-terminal schedules)."""
    return Prediction((x - s * eps) / a, eps)


def from_x0(x_0: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """The denoised picture itself; eps follows from x_t. Undefined at s = 0."""
    return Prediction(x_0, (x - a * x_0) / s)


def from_v(v: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """v = a eps - s x_0 (Salimans & Ho 2022, appendix D); needs a^2 + s^2 = 1."""
    return Prediction(a * x - s * v, s * x + a * v)


def from_flow(u: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """u = eps - x_0 (Liu et al. 2023); needs a + s = 1."""
    return Prediction(x - s * u, x + a * u)


def to_prediction(kind: PredictionType, out: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Prediction:
    """A network's output of the given kind, with x_t and coefficients [B], as a `Prediction`."""
    views = {"eps": from_eps, "x0": from_x0, "v": from_v, "flow": from_flow}
    return views[kind](out, x, expand_like(a, x), expand_like(s, x))


def from_prediction(kind: PredictionType, p: Prediction, a: Tensor, s: Tensor) -> Tensor:
    """The network output of the given kind that says the same as `p`; with the truth for `p`, the training target."""
    match kind:
        case "eps":
            return p.eps
        case "x0":
            return p.x_0
        case "v":
            return expand_like(a, p.eps) * p.eps - expand_like(s, p.x_0) * p.x_0
        case "flow":
            return p.eps - p.x_0
