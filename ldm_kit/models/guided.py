"""Apply sampling options to a model: classifier-free guidance and clipping of its denoiser, and the step variance."""

from typing import Literal

from conditioning.base import Condition
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, Thresholded
from ldm_kit.diffusion.guidance import ClassifierFree, Interval, Rescaled
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.models.options import ResolvedOptions


def classifier_free(network: Denoiser, null: Condition, options: ResolvedOptions, target: PredictionType) -> Denoiser:
    """Return a denoiser with classifier-free guidance: its scale, rescaling and time interval are those of `options`.

    Args:
        network: the unguided denoiser.
        null: the null condition, or that of a negative prompt, one row for each sample of the batch.
        options: the guidance scale, rescale and interval are read.
        target: what the network predicts; rescaling acts on this quantity.
    """
    guided: Denoiser = ClassifierFree(network, null, options.guidance_scale, join=Condition.before)
    if options.guidance_rescale > 0:
        guided = Rescaled(guided, options.guidance_rescale, target)
    if options.guidance_interval != (0.0, 1.0):
        guided = Interval(guided, network, *options.guidance_interval)
    return guided


def clipped(denoiser: Denoiser, clip: str) -> Denoiser:
    """Return a denoiser whose x_0 is clipped.

    Args:
        denoiser: predicts x_0 without a limit.
        clip: clip or published: to [-1, 1]; dynamic: dynamic thresholding; anything else: not at all.
    """
    match clip:
        case "clip" | "published":
            return Clipped(denoiser)
        case "dynamic":
            return Thresholded(denoiser)
        case _:
            return denoiser


def step_variance(variance: VarianceType) -> Literal["large", "auto"]:
    """Return the `variance` argument of the ddpm sampler for a model's variance type.

    "large" is the variance beta. "auto" is the variance that the network predicts, or the posterior's if it predicts
    none.
    """
    return "large" if variance == "large" else "auto"
