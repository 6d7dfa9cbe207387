"""Apply sampling options to a model: guidance and clipping of its denoiser, and the variance of its steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from conditioning.base import Condition
from ldm_kit.diffusion.denoiser import Clipped, Denoiser, Gradient, NetworkDenoiser, Thresholded
from ldm_kit.diffusion.guidance import Autoguidance, ClassifierFree, ClassifierGradient, Interval, Rescaled
from ldm_kit.diffusion.guidance_chain import ClassifierFreeGuidance, GuidanceChain
from ldm_kit.diffusion.guidance_scale import scale_at
from ldm_kit.diffusion.posterior import VarianceType
from ldm_kit.diffusion.prediction import PredictionType
from ldm_kit.models.compatibility import FixedCondition
from ldm_kit.models.options import ResolvedOptions
from ldm_kit.models.picture_condition import PictureInputs

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline


def guided_denoiser(
    pipeline: "Pipeline",
    prompts: Sequence[str | int],
    options: ResolvedOptions,
    pictures: PictureInputs | None = None,
) -> Denoiser:
    """Return a model's denoiser with classifier-free guidance, then autoguidance, then clipping, as `options` ask.

    A U-Net that takes the guidance scale as input gets it, in place of classifier-free guidance.

    Args:
        pipeline: the model.
        prompts: B prompts, encoded here for the weaker model of autoguidance; the condition of `pipeline` itself is an
            argument of each call of the denoiser.
        options: sampling options, resolved for the model.
        pictures: what the pictures that condition the model give; guidance keeps their maps. None: there are none.
    """
    pictures = pictures or PictureInputs()
    denoiser: Denoiser = pipeline.denoiser(options if pipeline.takes_scale else None)
    null = None if pipeline.takes_scale else pipeline.conditioner.null
    if null is not None and options.guides:
        negative = null if options.negative_prompt is None else options.negative_prompt
        partial, scales = _partial_conditions(pipeline, prompts, negative, options, pictures)
        denoiser = classifier_free(denoiser, partial, scales, options, pipeline.target)
    if pipeline.autoguidance_model is not None and options.autoguidance_scale not in (None, 1):
        guide = pipeline.autoguidance_model
        network = pipeline.finite.network("the guide model's U-Net", guide.network())
        fixed = FixedCondition(replace(guide.denoiser(), network=network), guide.condition(prompts, pictures))
        denoiser = Autoguidance(denoiser, fixed, options.autoguidance_scale)
    if not isinstance(denoiser, NetworkDenoiser):
        denoiser = pipeline.finite.denoiser("guidance", denoiser)
    return clipped(denoiser, options)


def _partial_conditions(
    pipeline: "Pipeline", prompts: Sequence[str | int], negative: str, options: ResolvedOptions, pictures: PictureInputs
) -> tuple[list[Condition], list[float]]:
    """Return the conditions under which `GuidanceChain` evaluates the model, but for that of all, and its scales.

    Of P conditions the first 0, 1, ... are those of `prompts`, the rest that of the prompt `negative`. A condition
    whose scale is the next one's is left out, as its term is zero; so is the first one where its scale is 1.
    """
    scales = list(options.guidance_scales or [options.guidance_scale] * max(1, pipeline.conditioner.drops))
    needed = [k for k, scale in enumerate(scales) if (k == 0 or scales[k - 1] != scale) and (k > 0 or scale != 1)]
    null = pipeline.conditioner.prepare([negative] * len(prompts))
    given = pipeline.conditioner.prepare(prompts) | pictures.encoded if any(needed) else null  # an encoder may run
    partial = []
    for count in needed:
        dropped = torch.arange(len(scales)) >= count
        inputs = pipeline.conditioner.drop(given, null, dropped.expand(len(prompts), -1)) if count else null
        partial.append(pipeline.encoded(inputs, pictures.maps))
    return partial, [scales[k] for k in needed]


def classifier_free(
    network: Denoiser,
    partial: Sequence[Condition],
    scales: Sequence[float],
    options: ResolvedOptions,
    target: PredictionType,
) -> Denoiser:
    """Return a denoiser with classifier-free guidance: its rescaling and time interval are those of `options`.

    Args:
        network: the unguided denoiser.
        partial: the null condition, or that of a negative prompt, one row for each sample of the batch; with several
            scales, further conditions that lack some of the prompts' parts (see `GuidanceChain`).
        scales: the guidance scale of each of `partial`.
        options: the rescale and interval are read.
        target: what the network predicts; rescaling acts on this quantity.
    """
    classifier_free: ClassifierFreeGuidance = GuidanceChain(network, partial, scales)
    if len(scales) == 1:
        classifier_free = ClassifierFree(network, partial[0], scales[0], join=Condition.before)
    guided: Denoiser = classifier_free
    if options.guidance_rescale > 0:
        guided = Rescaled(classifier_free, options.guidance_rescale, target)
    if options.guidance_interval != (0.0, 1.0):
        guided = Interval(guided, network, *options.guidance_interval)
    return guided


def classifier_gradient(
    pipeline: "Pipeline", prompts: Sequence[str | int], options: ResolvedOptions
) -> Gradient | None:
    """Return the scaled gradient of a model's classifier; None: it has none, or the scale is 0.

    Args:
        pipeline: the model.
        prompts: B prompts, the classes to guide to where `options` name none.
        options: the classifier's scale and class are read.
    """
    labels = pipeline.labels(prompts, options)
    if pipeline.classifier is None or labels is None or not options.classifier_scale:
        return None
    gradient = ClassifierGradient(pipeline.classifier.log_probs, labels, options.classifier_scale)
    return pipeline.finite.network("the classifier's gradient", gradient)


def with_scale(
    network: Callable[..., Tensor], options: ResolvedOptions, steps: int
) -> Callable[[Any, Any, Any], Tensor]:
    """Return a function of (x, t, cond) that calls a network with the guidance scale of `options` as further input.

    Args:
        network: function of (x, t, cond, scale=), such as `apply_unet` for one U-Net.
        options: the guidance scale and interval are read; outside the interval the network gets scale 1.
        steps: number T of training timesteps.
    """

    def scaled(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return network(x, t, cond, scale=scale_at(options.guidance_scale, t, steps, options.guidance_interval))

    return scaled


def clipped(denoiser: Denoiser, options: ResolvedOptions) -> Denoiser:
    """Return a denoiser whose x_0 is clipped.

    Args:
        denoiser: predicts x_0 without a limit.
        options: `clip` is clip or published: to [-1, 1]; dynamic: dynamic thresholding with the quantile and the limit
            of the options; anything else: not at all.
    """
    match options.clip:
        case "clip" | "published":
            return Clipped(denoiser)
        case "dynamic":
            return Thresholded(denoiser, options.dynamic_thresholding_ratio, options.sample_max_value)
        case _:
            return denoiser


def step_variance(variance: VarianceType) -> Literal["large", "auto"]:
    """Return the `variance` argument of the ddpm sampler for a model's variance type.

    "large" is the variance beta. "auto" is the variance that the network predicts, or the posterior's if it predicts
    none.
    """
    return "large" if variance == "large" else "auto"
