"""The frozen teacher of consistency training: its steps along trajectories, and its guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from conditioning.base import Inputs
from ldm_kit.config import UserError
from ldm_kit.diffusion.consistency_targets import ddim_step, guided_prediction, heun_step
from ldm_kit.diffusion.denoiser import Denoiser, NetworkDenoiser
from ldm_kit.diffusion.prediction import Prediction, PredictionType
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.methods.conditions import has_captions
from ldm_kit.methods.consistency_config import ConsistencyRun
from ldm_kit.methods.inputs import NoisedBatch
from ldm_kit.models.folder import SEMANTIC, ModelFolder


class Guidance(NamedTuple):
    """Condition and guidance of a batch."""

    inputs: Inputs  # inputs of the condition by name, [B, ...] each
    null: Inputs | None  # inputs of the null condition, likewise; None: no guidance
    scale: Tensor | None  # guidance scales [B]; None: no guidance


def bound_denoiser(
    network: Callable[..., Tensor], schedule: Schedule, target: PredictionType, inputs: Inputs, scale: Tensor | None
) -> Denoiser:
    """Return a denoiser that calls a network with the condition and guidance scales of one batch.

    Args:
        network: function of (x_t, t, inputs, scale).
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
    """A frozen diffusion model that gives the next points x_r of the trajectories through noisy data x_t.

    Args:
        network: function of (x_t, t, inputs of the condition, scale).
        takes_scale: whether the network takes the guidance scale as input.
        schedule: noise schedule of x_t.
        target: what the network predicts.
        solver: solver of the step from x_t to x_r.
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
        """Return x_r [B, ...] at timesteps r [B]: one guided step of the teacher from x_t (CD, LCM).

        Args:
            noised: a batch with x_t and its timesteps t.
            r: timesteps [B] at which the step ends.
            guidance: condition, null condition and guidance scales of the batch.
        """
        denoiser = self.denoiser(guidance)
        if self.solver == "heun":
            return heun_step(denoiser, noised.x_t, noised.t, r)
        return ddim_step(denoiser(noised.x_t, noised.t), r, self.schedule)

    def guided_data(self, noised: NoisedBatch, r: Tensor, guidance: Guidance) -> Tensor:
        """Return x_r [B, ...] at timesteps r [B], from x_0 and eps of `noised`, shifted by the teacher's guidance.

        The shift is the teacher's guided prediction of x_0 and eps at x_t, minus its unguided one. In expectation over
        the data, x_r is then that of a step of the guided teacher, if the teacher predicts the mean x_0 given x_t.
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
    """A denoiser with classifier-free guidance, for one batch of B samples.

    `conditional` predicts under the condition, `null` under the null condition; `scale` [B] has each sample's scale.
    """

    def __init__(self, conditional: Denoiser, null: Denoiser, scale: Tensor) -> None:
        self.conditional, self.null, self.scale = conditional, null, scale
        self.schedule = conditional.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        return self.guide(self.conditional(x, t), x, t)

    def guide(self, conditional: Prediction, x: Tensor, t: Tensor) -> Prediction:
        """Return the guided prediction at x [B, ...] and timesteps t [B]; `conditional`: that under the condition."""
        return guided_prediction(conditional, self.null(x, t), self.scale)


def open_base(config: ConsistencyRun, device: str | None = None) -> ModelFolder:
    """Open the folder of the trained model that a run starts from; a checkpoint is first exported, on `device`.

    Raises:
        UserError: `config.base` is no saved model.
    """
    from ldm_kit.methods.export import saved_model  # which imports the training program, and that the methods

    return ModelFolder.open(saved_model(str(config.base), device=device))


def samples_captions(config: ConsistencyRun) -> bool:
    """Return whether the model that a run trains is sampled with captions.

    Raises:
        UserError: it is a semantic model, which decodes codes and samples nothing; or there is no such model.
    """
    if config.mode == "train":
        return has_captions(config.condition)
    base = open_base(config)
    if base.class_name == SEMANTIC:
        raise UserError(
            f"log.measures compares samples with held-out pictures, but the semantic model in {config.base} samples "
            "none without a prior"
        )
    return "text_encoder" in base
