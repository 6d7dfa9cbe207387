"""Guidance as wrappers of a denoiser. Wrappers are themselves denoisers: they nest, and samplers need no guidance code.

At guidance scale 1, classifier-free guidance and autoguidance return the model's conditional prediction, and classifier
guidance samples from the exact posterior given the label. Guidance does not change the learned variance
(`Prediction.fraction`): it is that of the model's conditional prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_kit.diffusion.denoiser import Denoiser, Gradient, with_output
from ldm_kit.diffusion.guidance_chain import Rescaled as Rescaled
from ldm_kit.diffusion.guidance_scale import in_interval
from ldm_kit.diffusion.prediction import Prediction, expand_like
from ldm_kit.diffusion.schedule import Schedule


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """A denoiser with classifier-free guidance (Ho & Salimans 2022, eq. 6).

    The guided x_0 and eps are null + scale (conditional - null), where `conditional` is the model's prediction under
    the condition and `null` its prediction under the null condition.

    Args:
        denoiser: the model, which is evaluated under the condition and under the null condition.
        null: the null condition, which replaces dropped conditions in training; or the condition of a negative prompt.
        scale: guidance scale as in diffusers; at 1, no guidance, the null condition is not evaluated.
        join: function that concatenates a condition and the null condition, so that the denoiser is called once with a
            batch of 2 B. If `join` is None or returns None, the denoiser is called twice.
    """

    denoiser: Denoiser
    null: Any
    scale: float
    join: Callable[[Any, Any], Any] | None = None

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    @property
    def guides(self) -> bool:
        """Whether the prediction differs from the model's own."""
        return self.scale != 1

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        if not self.guides:
            return self.denoiser(x, t, cond)
        return self.extrapolate(*self.predictions(x, t, cond))

    def predictions(self, x: Tensor, t: Tensor, cond: Any) -> tuple[Prediction, Prediction]:
        """Return the model's predictions under the condition `cond` and under the null condition.

        Args:
            x: noisy data x_t [B, ...].
            t: timesteps [B].
            cond: condition in the form that the denoiser takes.
        """
        joined = None if self.join is None else self.join(cond, self.null)
        if joined is None:
            return self.denoiser(x, t, cond), self.denoiser(x, t, self.null)
        both = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), joined)
        halves = [(view, view) if view is None else view.chunk(2) for view in both]
        conditional, null = zip(*halves, strict=True)
        return Prediction(*conditional), Prediction(*null)

    def extrapolate(self, conditional: Prediction, /, *others: Prediction) -> Prediction:
        """Return the guided prediction, null + scale (conditional - null), from the two that `predictions` returns.

        `others` is the prediction under the null condition alone.

        The learned variance (`Prediction.fraction`) is that of `conditional`.
        """
        (null,) = others
        return _extrapolate(null, conditional, self.scale)


@dataclass(frozen=True, eq=False)
class Interval:
    """A denoiser with guidance only at timesteps low <= t / T <= high (Kynkaanniemi et al. 2024).

    Args:
        guided: denoiser with guidance, used within the interval.
        denoiser: denoiser used outside the interval, usually the conditional model without guidance.
        low: lower end of the interval, as a fraction of the T training timesteps.
        high: upper end of the interval, as a fraction of T.

    Raises:
        ValueError: 0 <= low <= high <= 1 does not hold.
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
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        inside = in_interval(t, len(self.schedule), (self.low, self.high))
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
    """A denoiser with autoguidance (Karras et al. 2024, eq. 4).

    The guided x_0 and eps are guide + scale (model - guide), where `model` and `guide` are the two models' predictions.

    Args:
        denoiser: the model that is guided.
        guide: a smaller or less trained version of the model, evaluated under the same condition.
        scale: guidance scale; at 1, no guidance, the guide is not evaluated.

    Raises:
        ValueError: the model and the guide have different noise schedules.
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
        """The noise schedule, which the model and the guide share."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        better = self.denoiser(x, t, cond)
        return better if self.scale == 1 else _extrapolate(self.guide(x, t, cond), better, self.scale)


@dataclass(frozen=True, eq=False)
class ClassifierGradient:
    """The gradient scale * grad_x log p(label | x_t) of a noise-aware classifier (Dhariwal & Nichol 2021, section 4).

    The gradient is computed in float32 or better, and also inside `torch.no_grad`. The call leaves no autograd graph
    and sets no `.grad`.

    Args:
        log_probs: classifier, a function of x_t [B, ...] and t [B] to log-probabilities [B, K] of K classes.
        labels: class of each sample, int64 [B], 0 to K-1.
        scale: guidance scale; 1 is the exact posterior.
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
    """A denoiser with classifier guidance for every sampler (Dhariwal & Nichol 2021, algorithm 2).

    The guided eps is the predicted eps minus s_t times the gradient, where x_t = a_t x_0 + s_t eps; the guided x_0 is
    computed from the guided eps. In pure noise (a_t = 0) eps does not determine x_0, and x_0 stays as predicted. If
    `denoiser` clips x_0, it does so before guidance only, as in the paper's code.

    Args:
        denoiser: the denoiser that is guided, for a network of any prediction type.
        gradient: gradient of the classifier's log-probability, times the guidance scale.
    """

    denoiser: Denoiser
    gradient: Gradient

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, t, cond)
        a, s = self.schedule.alpha_sigma(t)
        eps = p.eps - expand_like(s, x) * self.gradient(x, t)
        return with_output(p, eps, x, a, s, prediction_type="eps")


def _extrapolate(start: Prediction, end: Prediction, scale: float) -> Prediction:
    return start.lerp(end, scale)._replace(fraction=end.fraction)
