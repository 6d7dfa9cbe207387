"""Guidance: denoisers around denoisers, so that they compose and no sampler knows that they exist.

Scale 1 is what the paper of each calls plain: the conditional model, or the exact posterior. All keep `fraction`, the
learned variance, of the conditional or better prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, Gradient, with_output
from ldm_kit.diffusion.prediction import Prediction, PredictionType, expand_like, from_prediction
from ldm_kit.diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Extrapolate from the null condition through the wished one (Ho & Salimans 2022, eq. 6).

    `scale` 1 is no guidance, as in diffusers; the null may also be a negative prompt.

    `rescale` (phi of Lin et al. 2024, eq. 15 and 16) takes the guided output of a network that predicts `target` back
    to the standard deviation that the conditional one has over all of a picture's numbers: 0 not at all, 1 wholly. As
    in diffusers it is the network's own quantity, so say which: where the model starts in pure noise eps is x_t itself
    and nothing is left to rescale, v and x_0 are not. The other view is re-derived.

    `interval` (Kynkaanniemi et al. 2024) guides only where low <= t / T <= high; elsewhere the wished condition alone
    is evaluated.

    `join` puts a wished condition and the null behind one another, so that one call of twice the batch answers for
    both; where it returns None, or there is none, there are two calls.
    """

    denoiser: Denoiser
    null: Any
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    target: PredictionType = "eps"
    join: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance works in an interval of t / T within 0 to 1, low end first, got {low} to {high}"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance is rescaled by a share from 0 to 1, got {self.rescale}")

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        low, high = self.interval
        part = t / len(self.schedule)
        inside = (low <= part) & (part <= high)
        if self.scale == 1 or not inside.any():
            return self.denoiser(x, t, cond)
        yes, no = self._both(x, t, cond)
        guided = _extrapolate(no, yes, self.scale)
        if self.rescale > 0:
            guided = self._rescaled(guided, yes, x, t)
        here = expand_like(inside, x).bool()
        return guided._replace(x_0=torch.where(here, guided.x_0, yes.x_0), eps=torch.where(here, guided.eps, yes.eps))

    def _both(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, Prediction]:
        joined = None if self.join is None else self.join(cond, self.null)
        if joined is None:
            return self.denoiser(x, t, cond), self.denoiser(x, t, self.null)
        found = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), joined)
        yes, no = zip(*((part, part) if part is None else part.chunk(2) for part in found), strict=True)
        return Prediction(*yes), Prediction(*no)

    def _rescaled(self, guided: Prediction, yes: Prediction, x: Tensor, t: Tensor) -> Prediction:
        a, s = self.schedule.at(t)
        out, aim = (from_prediction(self.target, p, a, s) for p in (guided, yes))
        factor = aim.flatten(1).std(1) / out.flatten(1).std(1)
        return with_output(self.target, out * expand_like(1 + self.rescale * (factor - 1), x), guided, x, a, s)


@dataclass(frozen=True, eq=False)
class Autoguidance:
    """Extrapolate from a worse model, smaller or less trained, through a better one (Karras et al. 2024, eq. 4).

    Both see the same condition, which may be none; `scale` 1 is no guidance.
    """

    denoiser: Denoiser
    worse: Denoiser
    scale: float

    def __post_init__(self) -> None:
        ours, theirs = self.denoiser.schedule, self.worse.schedule
        if len(ours) != len(theirs) or not torch.allclose(ours.s.cpu(), theirs.s.cpu(), atol=1e-5):
            raise ValueError("a worse model guides on the noise schedule that it shares with the better; these differ")

    @property
    def schedule(self) -> Schedule:
        """The schedule of both."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        better = self.denoiser(x, t, cond)
        return better if self.scale == 1 else _extrapolate(self.worse(x, t, cond), better, self.scale)


@dataclass(frozen=True, eq=False)
class ClassifierGradient:
    """scale * grad_x log p(label | x_t) of a classifier that knows noise (Dhariwal & Nichol 2021, section 4).

    `log_probs` takes (x [B, ...], t [B]) to log-probabilities [B, K]; `labels` [B] are int64. It is called in float32
    or better, with gradients even inside `torch.no_grad`, and leaves neither a graph nor a `.grad` behind.
    """

    log_probs: Callable[[Tensor, Tensor], Tensor]
    labels: Tensor
    scale: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if len(self.labels) != len(x):
            raise ValueError(
                f"a classifier guides with one label for each of {len(x)} pictures, got {len(self.labels)}"
            )
        with torch.enable_grad():
            seen = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
            chosen = self.log_probs(seen, t).gather(1, self.labels.to(x.device)[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), seen)
        return self.scale * gradient.to(x.dtype)


@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """Shift eps by -s_t gradient and re-derive x_0 (Dhariwal & Nichol 2021, algorithm 2); for every sampler and target.

    It acts on what a denoiser says, so what `denoiser` clips is clipped before the shift and not again, as in their
    code. Where a_t = 0 x_0 stays: x_t is noise alone there, from which no x_0 can be derived.
    """

    denoiser: Denoiser
    gradient: Gradient

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.at(t)
        return with_output("eps", p.eps - expand_like(s, x) * self.gradient(x, t), p, x, a, s)


def _extrapolate(no: Prediction, yes: Prediction, scale: float) -> Prediction:
    x_0, eps = torch.lerp(no.x_0, yes.x_0, scale), torch.lerp(no.eps, yes.eps, scale)
    return Prediction(x_0, eps, yes.fraction)
