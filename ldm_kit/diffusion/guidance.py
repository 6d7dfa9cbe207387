"""Guidance: denoisers around denoisers, so that they compose and samplers need not know of them.

Scale 1 is no guidance, in the sense of each paper: the conditional model, or the exact posterior of a classifier. The
`fraction`, which is the learned variance, is that of the conditional or better prediction.
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
    """Classifier-free guidance, null + scale (conditional - null) (Ho & Salimans 2022, eq. 6).

    Args:
        denoiser: evaluated under the condition and under the null condition.
        null: the null condition, or that of a negative prompt.
        scale: 1 is no guidance, as in diffusers; the null condition is then not evaluated.
        join: concatenates a condition and the null condition, so that one call with a batch of 2 B answers for both;
            where it returns None, or is None, there are two calls.
    """

    denoiser: Denoiser
    null: Any
    scale: float
    join: Callable[[Any, Any], Any] | None = None

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        if self.scale == 1:
            return self.denoiser(x, t, cond)
        return self.extrapolate(*self.predictions(x, t, cond))

    def predictions(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, Prediction]:
        """Return the predictions under `cond` and under the null condition, from x [B, ...] at timesteps t [B]."""
        joined = None if self.join is None else self.join(cond, self.null)
        if joined is None:
            return self.denoiser(x, t, cond), self.denoiser(x, t, self.null)
        both = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), joined)
        halves = [(view, view) if view is None else view.chunk(2) for view in both]
        conditional, null = zip(*halves, strict=True)
        return Prediction(*conditional), Prediction(*null)

    def extrapolate(self, conditional: Prediction, null: Prediction) -> Prediction:
        """Return the guided prediction of the two that `predictions` gives."""
        return _extrapolate(null, conditional, self.scale)


@dataclass(frozen=True, eq=False)
class Rescaled:
    """Classifier-free guidance whose output keeps the standard deviation of the conditional one (Lin et al. 2024).

    Per sample, out <- out (1 + phi (std(conditional) / std(out) - 1)), eq. 15 and 16, where both are outputs of the
    network, in its own `prediction_type`: in pure noise eps is x_t itself and there is nothing to rescale, while v and
    x_0 have their own deviation. The other view is derived from the result. It changes nothing at scale 1, or where
    the guided output has no deviation, as that of a zero-initialised network.

    Args:
        guided: classifier-free guidance; its two predictions are evaluated once.
        phi: 0 not at all, 1 wholly.
        prediction_type: what the network predicts.

    Raises:
        ValueError: `phi` outside 0 to 1.
    """

    guided: ClassifierFree
    phi: float
    prediction_type: PredictionType

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"guidance is rescaled by a share from 0 to 1, got {self.phi}")

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.guided.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        if self.guided.scale == 1 or self.phi == 0:
            return self.guided(x, t, cond)
        conditional, null = self.guided.predictions(x, t, cond)
        p = self.guided.extrapolate(conditional, null)
        a, s = self.schedule.alpha_sigma(t)
        out, reference = (from_prediction(self.prediction_type, each, a, s) for each in (p, conditional))
        deviation = out.flatten(1).std(1)
        ratio = torch.where(deviation > 0, reference.flatten(1).std(1) / deviation, 1.0)
        rescaled = out * expand_like(1 + self.phi * (ratio - 1), x)
        return with_output(p, rescaled, x, a, s, prediction_type=self.prediction_type)


@dataclass(frozen=True, eq=False)
class Interval:
    """Guidance in a limited interval of noise levels, low <= t / T <= high (Kynkaanniemi et al. 2024).

    Args:
        guided: the denoiser within the interval.
        denoiser: the denoiser outside it, usually the conditional model; it alone is evaluated there.
        low: lower end, a share of T.
        high: upper end, a share of T.

    Raises:
        ValueError: not 0 <= low <= high <= 1.
    """

    guided: Denoiser
    denoiser: Denoiser
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"guidance works in an interval of t / T within 0 to 1, low end first, got {self.low} to {self.high}"
            )

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        share = t / len(self.schedule)
        inside = (self.low <= share) & (share <= self.high)
        if not inside.any():
            return self.denoiser(x, t, cond)
        guided = self.guided(x, t, cond)
        if inside.all():
            return guided
        plain = self.denoiser(x, t, cond)
        mask = expand_like(inside, x).bool()
        x_0, eps = torch.where(mask, guided.x_0, plain.x_0), torch.where(mask, guided.eps, plain.eps)
        return Prediction(x_0, eps, plain.fraction)


@dataclass(frozen=True, eq=False)
class Autoguidance:
    """Autoguidance, guide + scale (better - guide) (Karras et al. 2024, eq. 4).

    Args:
        denoiser: the better model.
        guide: a worse one, smaller or less trained; it is evaluated under the same condition.
        scale: 1 is no guidance; the guide is then not evaluated.

    Raises:
        ValueError: the two have different noise schedules.
    """

    denoiser: Denoiser
    guide: Denoiser
    scale: float

    def __post_init__(self) -> None:
        better, guide = self.denoiser.schedule, self.guide.schedule
        if len(better) != len(guide) or not torch.allclose(better.s.cpu(), guide.s.cpu(), atol=1e-5):
            raise ValueError("a guide model must have the noise schedule of the model that it guides; these differ")

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of both."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        better = self.denoiser(x, t, cond)
        return better if self.scale == 1 else _extrapolate(self.guide(x, t, cond), better, self.scale)


@dataclass(frozen=True, eq=False)
class ClassifierGradient:
    """scale * grad_x log p(label | x_t) of a classifier of noisy data (Dhariwal & Nichol 2021, section 4).

    The classifier is called in float32 or better, with gradients even inside `torch.no_grad`; neither a graph nor a
    `.grad` remains.

    Args:
        log_probs: (x_t [B, ...], t [B]) to log-probabilities [B, K].
        labels: int64 [B], 0 to K-1.
        scale: factor of the gradient; 1 is the exact posterior.
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
            leaf = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
            log_p = self.log_probs(leaf, t).gather(1, self.labels.to(x.device)[:, None])
            (gradient,) = torch.autograd.grad(log_p.sum(), leaf)
        return self.scale * gradient.to(x.dtype)


@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """Classifier guidance of eps, eps - s_t gradient (Dhariwal & Nichol 2021, algorithm 2), for every sampler.

    x_0 is derived from the shifted eps; where a_t = 0, in pure noise, eps does not determine x_0, which stays. Clipping
    within `denoiser` is applied before the shift and not again, as in their code.

    Args:
        denoiser: what is guided, of any prediction type.
        gradient: gradient of the classifier's log-probability, times the guidance scale.
    """

    denoiser: Denoiser
    gradient: Gradient

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.alpha_sigma(t)
        eps = p.eps - expand_like(s, x) * self.gradient(x, t)
        return with_output(p, eps, x, a, s, prediction_type="eps")


def _extrapolate(start: Prediction, end: Prediction, scale: float) -> Prediction:
    return start.lerp(end, scale)._replace(fraction=end.fraction)
