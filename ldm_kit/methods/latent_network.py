"""The trained network of latent diffusion, U-Net and conditioner, and its training with the guidance scale as input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditioning.base import Condition, Conditioner, Inputs
from ldm_kit.diffusion import rng
from ldm_kit.diffusion.consistency_targets import guided_prediction
from ldm_kit.diffusion.denoiser import NetworkDenoiser
from ldm_kit.diffusion.float64 import exact, move_back
from ldm_kit.diffusion.guidance_scale import draw_scale, guidance_term, scale_at
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.diffusion.schedule import Schedule
from ldm_kit.methods.inputs import NoisedBatch
from ldm_kit.methods.latent_config import GuidanceConfig
from ldm_kit.methods.networks import eval_mode
from ldm_kit.nets.apply import apply_unet

CONCAT, NOISE_LEVEL, SIZES = "picture.concat", "picture.level", "picture.sizes"
"""Names of the inputs of `LatentDiffusion` that are maps of pictures, not the conditioner's inputs, their level, and
the sizes of pictures."""
_OF_PICTURES = (CONCAT, NOISE_LEVEL, SIZES)


def with_maps(null: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs `null` of the null condition, with the maps and sizes in `inputs`, which guidance keeps."""
    return {**null, **{name: inputs[name] for name in _OF_PICTURES if name in inputs}}


class LatentDiffusion(nn.Module):
    """U-Net and conditioner as one module, so that one DDP wrapper averages the gradients of both."""

    def __init__(self, unet: nn.Module, conditioner: Conditioner) -> None:
        super().__init__()
        self.unet, self.conditioner = unet, conditioner

    def forward(self, x: Tensor, t: Tensor, inputs: Mapping[str, Tensor], scale: Tensor | None = None) -> Tensor:
        """Return the U-Net's output.

        Args:
            x: noisy latents [B, Z, h, w].
            t: timesteps [B].
            inputs: the conditioner's inputs by name, [B, ...] each, such as token ids; and maps of pictures.
            scale: guidance scales [B], for a U-Net that takes them as input; None: scale 1, no guidance.
        """
        unet: Any = self.unet
        given = {name: value for name, value in inputs.items() if name not in _OF_PICTURES}
        condition = self.conditioner(**given)
        if CONCAT in inputs or SIZES in inputs:
            maps = Condition(concat=inputs.get(CONCAT), level=inputs.get(NOISE_LEVEL), sizes=inputs.get(SIZES))
            condition = condition.expanded(len(x)).joined(maps)
        return apply_unet(unet, x, t, condition, scale=scale)


@dataclass(frozen=True, eq=False)
class GuidedTraining:
    """A wrapper of the network for the loss: squared error against the plain target trains it to give guided output.

    Model guidance adds g = (1 - 1/w) (v_c - v_u) to the target, where w is the guidance scale, v_c the network's output
    under the condition and v_u its output under the null condition. A call (x_t, t, inputs) returns v_c - g instead,
    with the same error and gradient, whatever the weights of the loss. v_u costs one more evaluation, without gradients
    and dropout; it uses the weights in training, not their average, as in improved MeanFlow. For samples whose
    condition is dropped, v_c and v_u are equal but for dropout, so that the network learns unguided output at every
    scale.

    Outside the interval of guidance the network still gets the scale, but g is left out, so that it learns to ignore
    the scale there.

    Args:
        network: the network that is trained, a `LatentDiffusion` or its DDP wrapper.
        module: the `LatentDiffusion` itself.
        null: the conditioner's inputs of the null condition, one row each.
        scale: guidance scales w [B].
        interval: shares of the training timesteps between which the training is guided.
        steps: number T of training timesteps.
    """

    network: Callable[..., Tensor]
    module: LatentDiffusion
    null: Mapping[str, Tensor]
    scale: Tensor
    interval: tuple[float, float]
    steps: int

    def __call__(self, x: Tensor, t: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        out = self.network(x, t, inputs, self.scale)  # first, as some releases cache autocast's casts without gradients
        with torch.no_grad(), eval_mode(self.module):
            null = self.module(x, t, with_maps(self.null, inputs), self.scale)
        return out.float() - guidance_term(out, null, scale_at(self.scale, t, self.steps, self.interval))


@dataclass(frozen=True, eq=False)
class GuidedTeacher:
    """A frozen model, whose output with classifier-free guidance is learned (Meng et al. 2023, section 3.1).

    The student, which takes the guidance scale w as input, then learns v_u + w (v_c - v_u) of the teacher, where v_c is
    the output under the condition and v_u that under the null condition. Given x_t that has no variance, other than the
    data's x_0 and eps. It costs two evaluations of the teacher. Squared errors are divided by w^2 (our choice), as they
    grow with w: without that the highest scales decide what the network learns at the lower ones.

    Args:
        network: the frozen model, a function of (x_t, t, inputs) as `LatentDiffusion` is.
        null: the conditioner's inputs of the null condition, one row each.
        schedule: noise schedule of x_t.
        prediction_type: what the network predicts.
        interval: shares of the training timesteps between which the teacher is guided.
    """

    network: Callable[..., Tensor]
    null: Mapping[str, Tensor]
    schedule: Schedule
    prediction_type: PredictionType
    interval: tuple[float, float]

    @torch.no_grad()
    def guided(self, noised: NoisedBatch, inputs: Inputs, scale: Tensor) -> NoisedBatch:
        """Return a noised batch whose x_0 and eps are replaced by those that the guided teacher predicts.

        Args:
            noised: the batch.
            inputs: inputs of the condition by name, [B, ...] each.
            scale: guidance scales w [B]; outside the interval they are taken as 1.
        """
        x, t = noised.x_t, noised.t
        denoiser = NetworkDenoiser(self.network, self.schedule, self.prediction_type)
        scales = scale_at(scale, t, len(self.schedule), self.interval)
        guided = guided_prediction(denoiser(x, t, inputs), denoiser(x, t, with_maps(self.null, inputs)), scales)
        return noised._replace(x_0=guided.x_0, eps=guided.eps)


def draw_scales(config: GuidanceConfig, seed: int, position: Tensor) -> Tensor:
    """Draw a guidance scale for each sample, log-uniformly from 1 to `config.max_scale`, [B].

    `seed` and a sample's position [B], its number among all samples of the run, determine the draw.
    """
    return move_back(draw_scale(rng.uniform(seed, "guidance", exact(position)), config.max_scale), position)
