"""The frozen teacher of the method `consistency`: its steps along the trajectory, and its guidance of data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from conditioning.base import Inputs
from ldm_kit.diffusion.consistency_targets import ddim_step, guided_prediction, heun_step
from ldm_kit.diffusion.denoiser import Denoiser, NetworkDenoiser
from ldm_kit.diffusion.prediction import Prediction, PredictionType
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.methods.inputs import NoisedBatch


class Guidance(NamedTuple):
    """Condition and guidance of a batch."""

    inputs: Inputs  # inputs of the condition by name, [B, ...] each
    null: Inputs | None  # those of the null condition; None: no guidance
    scale: Tensor | None  # guidance scales [B]; None: no guidance


def bound_denoiser(
    network: Callable[..., Tensor], schedule: Schedule, target: PredictionType, inputs: Inputs, scale: Tensor | None
) -> Denoiser:
    """Return a network as a denoiser under the condition of one batch.

    Args:
        network: function of (x_t, t, inputs, scale), a student's module.
        schedule: noise schedule of x_t.
        target: what the network predicts.
        inputs: inputs of the condition by name, [B, ...] each.
        scale: guidance scales [B], for a network that takes them as input; else None.
    """

    def call(x: Tensor, t: Tensor, _: Any) -> Tensor:
        return network(x, t, inputs, scale)

    return NetworkDenoiser(call, schedule, target)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network that says where the trajectories through noisy data go.

    Args:
        network: function of (x_t, t, inputs, scale), a student's module.
        takes_scale: whether the network takes the guidance scale as input.
        schedule: noise schedule of x_t.
        target: what the network predicts.
        solver: solver of its steps.
    """

    network: Callable[..., Tensor]
    takes_scale: bool
    schedule: Schedule
    target: PredictionType
    solver: Literal["ddim", "heun"]

    def denoiser(self, guidance: Guidance) -> Denoiser:
        """Return the teacher as a denoiser under the condition of a batch, with guidance."""
        inputs, null, scale = guidance
        given = scale if self.takes_scale else None
        conditional = bound_denoiser(self.network, self.schedule, self.target, inputs, given)
        if self.takes_scale or null is None or scale is None:
            return conditional
        return _Guided(conditional, bound_denoiser(self.network, self.schedule, self.target, null, None), scale)

    def distilled(self, noised: NoisedBatch, r: Tensor, guidance: Guidance) -> Tensor:
        """Return x_r [B, ...], the ends of one step of the guided teacher from x_t to timesteps r (CD; LCM)."""
        denoiser = self.denoiser(guidance)
        if self.solver == "heun":
            return heun_step(denoiser, noised.x_t, noised.t, r)
        return ddim_step(denoiser(noised.x_t, noised.t), r, self.schedule)

    def guided_data(self, noised: NoisedBatch, r: Tensor, guidance: Guidance) -> Tensor:
        """Return x_r [B, ...] at timesteps r from the data's x_0 and eps, moved by the teacher's guidance.

        What guidance adds to the teacher's prediction at x_t is added to x_0 and eps. In expectation over the data this
        is a step of the guided teacher, as far as the teacher's own prediction is the expected one.
        """
        denoiser, (x, t) = self.denoiser(guidance), (noised.x_t, noised.t)
        if isinstance(denoiser, _Guided):  # whose unguided prediction is a part of the guided one
            plain = denoiser.conditional(x, t)
            guided = denoiser.guide(plain, x, t)
        else:
            guided, plain = denoiser(x, t), self.denoiser(guidance._replace(scale=None))(x, t)
        moved = Prediction(noised.x_0 + guided.x_0 - plain.x_0, noised.eps + guided.eps - plain.eps)
        return ddim_step(moved, r, self.schedule)


class _Guided:
    """Classifier-free guidance with a scale for each sample of one batch."""

    def __init__(self, conditional: Denoiser, null: Denoiser, scale: Tensor) -> None:
        self.conditional, self.null, self.scale = conditional, null, scale
        self.schedule = conditional.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        return self.guide(self.conditional(x, t), x, t)

    def guide(self, conditional: Prediction, x: Tensor, t: Tensor) -> Prediction:
        """Return the guided prediction at x [B, ...] and timesteps t [B] from the prediction under the condition."""
        return guided_prediction(conditional, self.null(x, t), self.scale)
