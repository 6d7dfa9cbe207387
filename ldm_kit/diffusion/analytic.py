"""Distributions whose denoiser is known exactly, for tests of samplers, guidance and losses."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The exact denoiser of x_0 ~ N(m, s^2), E[x_0 | x_t] and E[eps | x_t] in closed form; conditions are ignored.

    Args:
        schedule: noise schedule of x_t.
        m: mean, a number or one for each coordinate [...].
        s: standard deviation, 0 or more.
    """

    schedule: Schedule
    m: float | Tensor
    s: float

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Prediction:
        """Predict from x [B, ...] at timesteps t [B], also where a_t = 0 and, for s > 0, where s_t = 0."""
        a, s = (expand_like(c, x) for c in self.schedule.alpha_sigma(t))
        centred = (x - a * self.m) / ((a * self.s).square() + s.square())
        return Prediction(self.m + a * self.s**2 * centred, s * centred)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the natural log density of x_t at x [B, ...], up to a constant, [B]."""
        a, s = (expand_like(c, x) for c in self.schedule.alpha_sigma(t))
        variance = (a * self.s).square() + s.square()
        return -((x - a * self.m).square() / variance + variance.log()).flatten(1).sum(1) / 2


@dataclass(frozen=True, eq=False)
class Mixture:
    """The exact denoiser of a mixture of K Gaussians, and of each component under its index as the condition.

    Args:
        schedule: noise schedule of x_t.
        means: of the components, [K, ...]; what follows K is the shape of a sample.
        stds: standard deviations [K].
        weights: probabilities [K], positive, with sum 1.
    """

    schedule: Schedule
    means: Tensor
    stds: Tensor
    weights: Tensor

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Prediction:
        """Predict from x [B, ...] at timesteps t [B]; `cond` is None (the mixture), a component, or one each [B]."""
        if cond is None:
            probabilities = self.posterior(x, t)
        else:
            components = torch.as_tensor(cond, device=x.device).expand(len(x))
            probabilities = one_hot(components, len(self.weights)).to(x)
        weights = [expand_like(column, x) for column in probabilities.T]
        predictions = [component(x, t) for component in self.components(x)]
        x_0 = torch.stack([w * p.x_0 for w, p in zip(weights, predictions, strict=True)]).sum(0)
        return Prediction(x_0, torch.stack([w * p.eps for w, p in zip(weights, predictions, strict=True)]).sum(0))

    def components(self, x: Tensor) -> list[Gaussian]:
        """Return the K Gaussians, in the dtype and on the device of x."""
        return [Gaussian(self.schedule, m, float(s)) for m, s in zip(self.means.to(x), self.stds, strict=True)]

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the probability of each component given x [B, ...] at timesteps t [B], [B, K]."""
        return self.log_posterior(x, t).exp()

    def log_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the logarithm of `posterior`, which is the exact classifier of noisy data by component, [B, K]."""
        logs = torch.stack([component.log_density(x, t) for component in self.components(x)], dim=1)
        return (logs + self.weights.to(x).log()).log_softmax(dim=1)

    def given(self, likelihood: Tensor) -> "Mixture":
        """Return the mixture after evidence that has probability likelihood_k [K] under component k (Bayes)."""
        weights = self.weights * likelihood.to(self.weights)
        return replace(self, weights=weights / weights.sum())
