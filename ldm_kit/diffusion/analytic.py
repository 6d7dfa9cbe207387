"""Gaussians and mixtures of Gaussians, whose denoiser is known exactly: for tests of samplers, guidance and losses."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The exact denoiser of data x_0 ~ N(m, s^2): E[x_0 | x_t] and E[eps | x_t] in closed form, without conditions.

    Args:
        schedule: noise schedule, which gives a_t and s_t of x_t = a_t x_0 + s_t eps.
        m: mean of the data, a number or a tensor in the shape of one sample.
        s: standard deviation of the data, 0 or more.
    """

    schedule: Schedule
    m: float | Tensor
    s: float

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Prediction:
        """Predict x_0 and eps from noisy data x [B, ...] at timesteps t [B].

        Pure noise (a_t = 0) is allowed, and clean data (s_t = 0) if the data's standard deviation `s` is above 0.
        `cond` is ignored.
        """
        a, s = (expand_like(c, x) for c in self.schedule.alpha_sigma(t))
        centred = (x - a * self.m) / ((a * self.s).square() + s.square())
        return Prediction(self.m + a * self.s**2 * centred, s * centred)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the log density [B] of x_t at x [B, ...] and timesteps t [B], up to an additive constant, in nats."""
        a, s = (expand_like(c, x) for c in self.schedule.alpha_sigma(t))
        variance = (a * self.s).square() + s.square()
        return -((x - a * self.m).square() / variance + variance.log()).flatten(1).sum(1) / 2


@dataclass(frozen=True, eq=False)
class Mixture:
    """The exact denoiser of a mixture of K Gaussians; under the condition k it is the denoiser of component k alone.

    Args:
        schedule: noise schedule, which gives a_t and s_t of x_t = a_t x_0 + s_t eps.
        means: means of the components, [K, ...], where [...] is the shape of a sample.
        stds: standard deviations of the components, [K].
        weights: probabilities of the components, [K], positive, with sum 1.
    """

    schedule: Schedule
    means: Tensor
    stds: Tensor
    weights: Tensor

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Prediction:
        """Predict x_0 and eps from noisy data x [B, ...] at timesteps t [B].

        `cond` is None for the mixture, the index of a component, or an index for each sample, [B].
        """
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
        """Return the exact denoisers of the K components, with means in the dtype and on the device of x."""
        return [Gaussian(self.schedule, m, float(s)) for m, s in zip(self.means.to(x), self.stds, strict=True)]

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the probabilities [B, K] of the components given noisy data x [B, ...] at timesteps t [B]."""
        return self.log_posterior(x, t).exp()

    def log_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the natural logarithm [B, K] of `posterior(x, t)`: the exact noise-aware classifier of the components.

        x is noisy data [B, ...], t are timesteps [B].
        """
        logs = torch.stack([component.log_density(x, t) for component in self.components(x)], dim=1)
        return (logs + self.weights.to(x).log()).log_softmax(dim=1)

    def given(self, likelihood: Tensor) -> "Mixture":
        """Return the mixture conditioned on some evidence: its weights are updated by Bayes' rule.

        Args:
            likelihood: probability of the evidence under each of the K components, [K].
        """
        weights = self.weights * likelihood.to(self.weights)
        return replace(self, weights=weights / weights.sum())
