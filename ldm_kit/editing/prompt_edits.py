"""Commands of `edit.py` on a diffusion model without a semantic encoder: reprompt, img2img and inpaint."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from conditioning.base import Condition
from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.samplers import State, ddim
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.editable import other_kind
from ldm_kit.editing.image_io import read_picture, save_result
from ldm_kit.editing.inpainting import composite, inpaint_latents, latent_mask
from ldm_kit.editing.inversion import (
    ReconstructionError,
    encode_image,
    inversion_times,
    invert_latents,
    noised_start,
    options_within,
    reconstruction_error,
    sampling_times,
)
from ldm_kit.editing.masks import read_mask
from ldm_kit.editing.sample_options import GuidedOptions, Img2ImgOptions, InpaintOptions, RepromptOptions, SeedOptions
from ldm_kit.memory import BatchSize
from ldm_kit.models.guided import step_variance
from ldm_kit.models.options import ResolvedOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.sampler_options import SamplerOptions
from ldm_kit.models.sizes import SizeOptions
from ldm_kit.progress import report_steps
from ldm_kit.solvers.samplers import sample

_NOT_RECORDED = {"image", "count", "seed", "batch_size"}  # paths, numbers in the file names, and how it is computed
_OF_SOLVER = ("solver", "spacing", "eta")  # without meaning where the command fixes sampler and timesteps


def _opened(context: EditContext) -> Pipeline:
    pipeline = context.load_pipeline(context.precision)
    if kind := other_kind(pipeline):
        raise UserError(f"the model in {context.folder} is {kind}; expected another")
    return pipeline


def reprompt_picture(context: EditContext, options: RepromptOptions) -> tuple[EditResult, ReconstructionError]:
    """Invert a picture under its own prompt, without guidance, and sample it under another prompt, with guidance.

    The picture is also sampled back under its own prompt, to measure the error of the inversion.

    Args:
        context: the model and the output folder.
        options: the picture, its own and the other prompt, and how the picture is inverted and sampled.

    Returns:
        Number of pictures written, path of their sheet and a note on options saved with the model; and the mean squared
        errors, with pixels in 0..1, of the picture that was sampled back and of the autoencoder alone.

    Raises:
        UserError: the file is no picture, the model is unconditional, or the model's noise schedule allows fewer steps
            than `options` has.
    """
    pipeline = _opened(context)
    if pipeline.conditioner.null is None:
        raise UserError("this model is unconditional and takes no prompt; img2img and inpaint need none")
    source, target = pipeline.condition([options.source]), pipeline.condition([options.prompt])
    picture, x_0 = _read(pipeline, options)
    times = inversion_times(pipeline, options, options.strength)
    steps = len(times) - 1
    sampling = options.resolve(pipeline, solver="ddim", steps=steps)
    unguided = pipeline.guided_denoiser(
        [""], sampling.model_copy(update={"guidance_scale": 1.0, "guidance_scales": None})
    )
    inverted = _last(pipeline, invert_latents(unguided, x_0, times, source, options.refine), steps, "inverting")
    reconstructed = _last(pipeline, ddim(unguided, inverted, times[::-1], source), steps, "reconstructing")
    guided = pipeline.guided_denoiser([""], sampling)
    edited = _last(pipeline, ddim(guided, inverted, times[::-1], target), steps, "sampling")
    pictures = torch.cat([picture, pipeline.pictures(reconstructed), pipeline.pictures(edited)])
    captions = ["picture", "reconstructed", options.prompt]
    result = save_result(context, pictures, captions, **_settings(options, sampling, times, {"image", *_OF_SOLVER}))
    return result._replace(note=sampling.note), reconstruction_error(pipeline, picture, x_0, reconstructed)


def img2img_picture(context: EditContext, options: Img2ImgOptions) -> EditResult:
    """Add noise to a picture and sample from there under a prompt (SDEdit, Meng et al. 2022).

    Args:
        context: the model and the output folder.
        options: the picture, the prompt, the seeds, and `strength`: the picture is noised to this fraction of the
            training timesteps.

    Returns:
        Number of pictures written, path of the sheet that shows them all, and a note on options saved with the model.

    Raises:
        UserError: the file is no picture; a prompt is given to an unconditional model, or none to a conditional one; or
            the model's noise schedule allows fewer steps than `options` has.
    """
    pipeline = _opened(context)
    cond = _condition(pipeline, options)
    picture, x_0 = _read(pipeline, options)
    sampling = options_within(options.resolve(pipeline), options.strength)
    times = sampling_times(pipeline, sampling, options.strength)
    noise: Any = {"eta": sampling.eta, "variance": step_variance(pipeline.variance)}

    def states(denoiser: Denoiser, x: Tensor, cond: Condition, seeds: Sequence[int]) -> Iterator[State]:
        start = noised_start(pipeline, x, seeds, times[0])
        return sample(sampling.solver, denoiser, start, times, cond, seeds=seeds, **noise)

    sampled = _in_batches(pipeline, sampling, options, _Task(x_0, cond, len(times) - 1, "sampling"), states)
    settings = _settings(options, sampling, times, _NOT_RECORDED)
    return _save(context, picture, sampled, options, **settings)._replace(note=sampling.note)


def inpaint_picture(context: EditContext, options: InpaintOptions) -> EditResult:
    """Sample a picture again where the mask is white; all other pixels keep their exact values.

    Args:
        context: the model and the output folder.
        options: the files of picture and mask, the prompt, the seeds, and how often each step is repeated.

    Returns:
        Number of pictures written, path of the sheet that shows them all, and a note on options saved with the model.

    Raises:
        UserError: a file is no picture; the mask marks no pixel or every pixel; a prompt is given to an unconditional
            model, or none to a conditional one; or the noise schedule allows fewer steps than `options` has.
    """
    pipeline = _opened(context)
    cond = _condition(pipeline, options)
    picture, x_0 = _read(pipeline, options)
    mask = read_mask(options.mask, options.size(pipeline), options.image)
    sampling = options.resolve(pipeline, solver="ddim")
    times = sampling_times(pipeline, sampling)
    masked = latent_mask(mask, (x_0.shape[-2], x_0.shape[-1])).to(x_0.device)

    def states(denoiser: Denoiser, x: Tensor, cond: Condition, seeds: Sequence[int]) -> Iterator[State]:
        return inpaint_latents(denoiser, x, masked, times, cond, seeds=seeds, resample=options.resample)

    sampled = _in_batches(pipeline, sampling, options, _Task(x_0, cond, len(times) - 1, "inpainting"), states)
    settings = _settings(options, sampling, times, {"mask", *_NOT_RECORDED, *_OF_SOLVER})
    pictures = composite(picture[0], sampled, mask)
    return _save(context, picture, pictures, options, **settings)._replace(note=sampling.note)


class _Task(NamedTuple):
    """Input of `_in_batches`: latents to start from, condition, number of steps, and the progress bar's text."""

    x_0: Tensor  # latents [1, Z, h, w] of the picture
    cond: Condition  # condition of all pictures
    steps: int  # number of sampling steps
    description: str  # name of the process, such as "sampling", for the progress bar and errors


def _in_batches(
    pipeline: Pipeline,
    sampling: ResolvedOptions,
    options: Img2ImgOptions | InpaintOptions,
    task: _Task,
    states: Callable[[Denoiser, Tensor, Condition, Sequence[int]], Iterator[State]],
) -> Tensor:
    """Sample `options.count` pictures, at most `options.batch_size` at once; halve the batch when memory runs out.

    Args:
        pipeline: the model.
        sampling: resolved options, whose guidance is used.
        options: the seeds and the batch size.
        task: the picture, and the condition of all pictures.
        states: the sampler: a function of (denoiser, x_0 [B, Z, h, w], condition, B seeds) that yields its states.

    Returns:
        Pictures uint8 [count, C, R, R] on the CPU; each depends on its own seed alone, but for rounding.
    """

    def latents(indices: range) -> Tensor:
        batch = slice(indices.start, indices.stop)
        denoiser = pipeline.guided_denoiser([""] * len(indices), sampling)
        x = task.x_0.expand(len(indices), *task.x_0.shape[1:])
        sampler = states(denoiser, x, task.cond[batch], options.seeds[batch])
        return _last(pipeline, sampler, task.steps, task.description)

    size = BatchSize(options.batch_size)
    batches = size.batches(options.count, latents)
    return torch.cat([picture for x in batches for picture in size.map(x, pipeline.pictures)])


def _settings(
    options: GuidedOptions, sampling: ResolvedOptions, times: Sequence[int], left_out: set[str]
) -> dict[str, Any]:
    """Return the settings of an edit for the PNGs' metadata.

    Args:
        options: the command's options.
        sampling: the same options, completed with the values saved with the model.
        times: the timesteps of sampling or inversion, including the first and the last.
        left_out: names of options that are not recorded: paths, numbers that the file names give, and options that
            have no effect.
    """
    sampled = sampling.model_dump(mode="json", include={*SamplerOptions.model_fields, *SizeOptions.model_fields})
    done = {**options.model_dump(mode="json", exclude=left_out), **sampled, "steps": len(times) - 1}
    return {name: value for name, value in done.items() if name not in left_out}


def _read(pipeline: Pipeline, options: RepromptOptions | Img2ImgOptions | InpaintOptions) -> tuple[Tensor, Tensor]:
    """Return the picture that `options` name, at their size, uint8 [1, C, H, W], and its latents [1, Z, h, w]."""
    picture = read_picture(options.image, options.size(pipeline), pipeline.channels)[None]
    return picture, encode_image(pipeline, picture)


def _condition(pipeline: Pipeline, options: SeedOptions) -> Condition:
    """Encode the user's prompt to a condition with one row for each picture to sample.

    Args:
        pipeline: the model, which encodes the prompt.
        options: `prompt`, None for an unconditional model, and `count`, the number of pictures.

    Raises:
        UserError: the model is unconditional but `options` has a prompt; or it is conditional and `options` has none.
    """
    if pipeline.conditioner.null is None:
        if options.prompt is not None:
            raise UserError(f"this model is unconditional and takes no prompt, got {options.prompt!r:.80}")
        return pipeline.condition([""] * options.count)
    if options.prompt is None:
        raise UserError("this model samples from prompts or class names; give --prompt")
    return pipeline.condition([options.prompt] * options.count)


def _last(pipeline: Pipeline, states: Iterator[State], steps: int, description: str) -> Tensor:
    """Run a sampler to its end, with a progress bar; return x of its last state.

    Args:
        pipeline: the model, which checks that all states are finite.
        states: the sampler's states, one for each step.
        steps: number of states.
        description: name of the process, such as "sampling", for the progress bar and for errors.

    Raises:
        NonFiniteError: NaN or infinity was computed.
    """
    checked = report_steps(pipeline.finite.states(states, description), description, steps)
    *_, last = tqdm(checked, description, total=steps, unit="step")
    return last.x


def _save(context: EditContext, picture: Tensor, sampled: Tensor, options: SeedOptions, **settings: Any) -> EditResult:
    captions, seeds = ["picture", *options.captions], [options.seed, *options.seeds]
    return save_result(context, torch.cat([picture, sampled]), captions, seeds=seeds, **settings)
