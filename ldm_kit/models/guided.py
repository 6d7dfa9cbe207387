"""What sampling options make of a model: its denoiser with classifier-free guidance and clipping, and the variance."""

from typing import Literal

from conditioning.base import Condition
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, Thresholded
from ldm_kit.diffusion.guidance import ClassifierFree, Interval, Rescaled
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.models.options import ResolvedOptions


def classifier_free(network: Denoiser, null: Condition, options: ResolvedOptions, target: PredictionType) -> Denoiser:
    """Return a denoiser with classifier-free guidance, rescaled and within an interval of time as the options say.

    Args:
        network: the unguided denoiser.
        null: its null (or negative) condition, one row for each of the batch.
        options: scale, rescale and interval.
        target: the network's output, whose contrast is rescaled.
    """
    guided: Denoiser = ClassifierFree(network, null, options.guidance_scale, join=Condition.before)
    if options.guidance_rescale > 0:
        guided = Rescaled(guided, options.guidance_rescale, target)
    if options.guidance_interval != (0.0, 1.0):
        guided = Interval(guided, network, *options.guidance_interval)
    return guided


def clipped(denoiser: Denoiser, clip: str) -> Denoiser:
    """Return a denoiser whose x_0 is clipped as `SamplingOptions.clip` says."""
    match clip:
        case "clip" | "published":
            return Clipped(denoiser)
        case "dynamic":
            return Thresholded(denoiser)
        case _:
            return denoiser


def step_variance(variance: VarianceType) -> Literal["large", "auto"]:
    """Return the variance of ddpm's steps for a model's; auto: what the network learned, or else the small one."""
    return "large" if variance == "large" else "auto"
