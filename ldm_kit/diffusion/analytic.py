"""Distributions with an exact denoiser: what samplers, guidance and losses are tested against."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Gaussian:
    """x_0 ~ N(m, s^2), with E[x_0 | x_t] and E[eps | x_t] in closed form; it ignores the condition."""

    schedule: Schedule
    m: float | Tensor  # a number, or one for each coordinate, [...]
    s: float

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Prediction:
        """x [B, ...] at times t [B]; defined where a_t = 0 and, for s > 0, where s_t = 0."""
        a, s = (expand_like(c, x) for c in self.schedule.at(t))
        centred = (x - a * self.m) / ((a * self.s).square() + s.square())
        return Prediction(self.m + a * self.s**2 * centred, s * centred)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density of x_t at x [B, ...], up to a constant, as [B]."""
        a, s = (expand_like(c, x) for c in self.schedule.at(t))
        variance = (a * self.s).square() + s.square()
        return -((x - a * self.m).square() / variance + variance.log()).flatten(1).sum(1) / 2


@dataclass(frozen=True, eq=False)
class Mixture:
    """Component k with probability weights_k; a component's index as condition gives that component's denoiser."""

    schedule: Schedule
    means: Tensor  # [K, ...]: what follows K is the shape of a picture
    stds: Tensor  # [K]
    weights: Tensor  # [K], positive, summing to 1

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | int | None = None) -> Prediction:
        """x [B, ...] at times t [B]; `cond` is None (the whole mixture), a component, or one for each picture [B]."""
        if cond is None:
            share = self.posterior(x, t)
        else:
            share = one_hot(torch.as_tensor(cond, device=x.device).expand(len(x)), len(self.weights)).to(x)
        shares = [expand_like(column, x) for column in share.T]
        parts = [part(x, t) for part in self.components(x)]
        x_0 = torch.stack([w * p.x_0 for w, p in zip(shares, parts, strict=True)]).sum(0)
        return Prediction(x_0, torch.stack([w * p.eps for w, p in zip(shares, parts, strict=True)]).sum(0))

    def components(self, x: Tensor) -> list[Gaussian]:
        """The Gaussians that it is made of, in the dtype of x."""
        return [Gaussian(self.schedule, m, float(s)) for m, s in zip(self.means.to(x), self.stds, strict=True)]

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Probability of each component given x_t, [B, K]."""
        return self.log_posterior(x, t).exp()

    def log_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Its logarithm: the exact noisy classifier whose classes are the components, [B, K]."""
        logs = torch.stack([part.log_density(x, t) for part in self.components(x)], dim=1)
        return (logs + self.weights.to(x).log()).log_softmax(dim=1)

    def given(self, likelihood: Tensor) -> "Mixture":
        """The mixture given evidence that component k makes with probability likelihood_k [K] (Bayes)."""
        weights = self.weights * likelihood.to(self.weights)
        return replace(self, weights=weights / weights.sum())
