"""Commands of `edit.py` on a model without a semantic encoder: another prompt, img2img, and inpainting."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.image_io import read_picture, save_result
from ldm_kit.editing.inpainting import composite, inpaint_latents, latent_mask
from ldm_kit.editing.inversion import (
    ReconstructionError,
    encode_image,
    guided_denoiser,
    inversion_times,
    invert_latents,
    noised_start,
    picture_shape,
    reconstruction_error,
    sampling_times,
)
from ldm_kit.editing.masks import read_mask
from ldm_kit.editing.sample_options import GuidedOptions, Img2ImgOptions, InpaintOptions, RepromptOptions, SeedOptions
from ldm_kit.models.pipeline import Pipeline


def reprompt_picture(context: EditContext, options: RepromptOptions) -> tuple[EditResult, ReconstructionError]:
    """Invert a picture under its own prompt, without guidance, and sample it under another prompt.

    Raises:
        UserError: no picture, a model without prompts, or more steps than it has training times.
    """
    pipeline = context.load_pipeline(context.precision)
    if pipeline.conditioner.null is None:
        raise UserError("this model is unconditional and takes no prompt; img2img and inpaint need none")
    source, target = pipeline.condition([options.source]), pipeline.condition([options.prompt])
    picture, x_0 = _read(pipeline, options.image)
    times = inversion_times(pipeline, options.steps, options.strength)
    context.make_out()
    steps = len(times) - 1
    unguided = guided_denoiser(pipeline, 1, GuidedOptions(steps=options.steps, guidance_scale=1))
    inverted = _last(pipeline, invert_latents(unguided, x_0, times, source, options.refine), steps, "inverting")
    reconstructed = _last(pipeline, ddim(unguided, inverted, times[::-1], source), steps, "reconstructing")
    guided = guided_denoiser(pipeline, 1, options)
    edited = _last(pipeline, ddim(guided, inverted, times[::-1], target), steps, "sampling")
    pictures = torch.cat([picture, pipeline.pictures(reconstructed), pipeline.pictures(edited)])
    captions = ["picture", "reconstructed", options.prompt]
    result = save_result(context, pictures, captions, **_settings(options, {"image"}))
    return result, reconstruction_error(pipeline, picture, x_0, reconstructed)


def img2img_picture(context: EditContext, options: Img2ImgOptions) -> EditResult:
    """Add noise to a picture up to the strength, and sample it from there (SDEdit, Meng et al. 2022).

    Raises:
        UserError: no picture, a prompt that does not fit the model, or more steps than it has training times.
    """
    pipeline = context.load_pipeline(context.precision)
    cond = _condition(pipeline, options)
    picture, x_0 = _read(pipeline, options.image)
    times = sampling_times(pipeline, options.steps, options.strength)
    context.make_out()
    start = noised_start(pipeline, x_0.expand(options.count, *x_0.shape[1:]), options.seeds, times[0])
    states = ddim(guided_denoiser(pipeline, options.count, options), start, times, cond)
    sampled = pipeline.pictures(_last(pipeline, states, len(times) - 1, "sampling"))
    return _save(context, picture, sampled, options, **_settings(options, {"image", "count", "seed"}))


def inpaint_picture(context: EditContext, options: InpaintOptions) -> EditResult:
    """Sample a picture again where the mask is white; all other pixels stay bit for bit.

    Raises:
        UserError: no picture, an empty or full mask, a prompt that does not fit the model, or more steps than it has
            training times.
    """
    pipeline = context.load_pipeline(context.precision)
    cond = _condition(pipeline, options)
    picture, x_0 = _read(pipeline, options.image)
    mask = read_mask(options.mask, picture.shape[-1], options.image)
    times = sampling_times(pipeline, options.steps)
    context.make_out()
    states = inpaint_latents(
        guided_denoiser(pipeline, options.count, options),
        x_0.expand(options.count, *x_0.shape[1:]),
        latent_mask(mask, (x_0.shape[-2], x_0.shape[-1])).to(x_0.device),
        times,
        cond,
        seeds=options.seeds,
        resample=options.resample,
    )
    sampled = pipeline.pictures(_last(pipeline, states, len(times) - 1, "inpainting"))
    settings = _settings(options, {"image", "mask", "count", "seed"})
    return _save(context, picture, composite(picture[0], sampled, mask), options, **settings)


def _settings(options: GuidedOptions, left_out: set[str]) -> dict[str, Any]:
    """Return what the PNGs record of options: no path, and no numbers that stand in the file names."""
    return options.model_dump(exclude=left_out)


def _read(pipeline: Pipeline, path: Path) -> tuple[Tensor, Tensor]:
    """Read a picture uint8 [1, C, R, R], and encode it as latents."""
    channels, side = picture_shape(pipeline)
    picture = read_picture(path, side, channels)[None]
    return picture, encode_image(pipeline, picture)


def _condition(pipeline: Pipeline, options: SeedOptions) -> Condition:
    """Return the condition of all pictures; raises UserError where the prompt does not fit the model."""
    if pipeline.conditioner.null is None:
        if options.prompt is not None:
            raise UserError(f"this model is unconditional and takes no prompt, got {options.prompt!r:.80}")
        return pipeline.condition([""] * options.count)
    if options.prompt is None:
        raise UserError("this model samples from prompts or class names; give --prompt")
    return pipeline.condition([options.prompt] * options.count)


def _last(pipeline: Pipeline, states: Iterator[State], steps: int, description: str) -> Tensor:
    """Run a sampler to its end, with a progress bar; return the last x. Raises NonFiniteError."""
    *_, last = tqdm(pipeline.finite.states(states, description), description, total=steps, unit="step")
    return last.x


def _save(context: EditContext, picture: Tensor, sampled: Tensor, options: SeedOptions, **settings: Any) -> EditResult:
    captions, seeds = ["picture", *options.captions], [options.seed, *options.seeds]
    return save_result(context, torch.cat([picture, sampled]), captions, seeds=seeds, **settings)
