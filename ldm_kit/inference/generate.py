"""Generation into a folder: prompts in, named PNGs and a grid out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.inference.requests import GenerationRequest, GuideModels, OutputOptions
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.folder import autocast_dtype, device_named
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.viz.grid import columns_for, enlargement, grid, to_image
from ldm_kit.viz.png import file_name, save_png

GRID = 400  # most pictures in the grid


class GenerationResult(NamedTuple):
    """How many pictures were generated, and the picture that shows them together."""

    pictures: int
    path: Path


class _Job(NamedTuple):
    """One picture."""

    prompt: str
    seed: int


def generate_to_folder(
    model: Path,
    request: GenerationRequest,
    options: SamplingOptions,
    guides: GuideModels | None = None,
    output: OutputOptions | None = None,
) -> GenerationResult:
    """Generate what is requested into `output.out`.

    Args:
        model: a saved model's folder, or a run's.
        request: prompts, seeds and how many.
        options: how they are sampled.
        guides: folders of the models that guide; None: none.
        output: folder, device, precision and metadata; None: the defaults.

    Raises:
        UserError: no such model or device; prompts, guides or options that do not fit the model. Nothing is written.
    """
    guides, output = guides or GuideModels(), output or OutputOptions()
    texts = request.texts()
    device = device_named(output.device)
    pipeline = _load(model, guides, device, autocast_dtype(output.precision, device))
    resolved = options.resolve(pipeline)
    jobs = [
        _Job(text, request.seed + k) for text in _check_prompts(pipeline, texts, resolved) for k in range(request.count)
    ]
    output.out.mkdir(parents=True, exist_ok=True)
    first = _save_pictures(_generate(pipeline, jobs, resolved, request.batch_size), jobs, resolved, output)
    columns = columns_for(len(first), request.count)
    captions = [job.prompt for job in jobs[:GRID]]
    sheet = grid(torch.stack(first), columns, scale=enlargement(first[0].shape[-1]), captions=captions)
    save_png(sheet, output.out / "grid.png", _metadata(resolved) if output.metadata else None)
    return GenerationResult(len(jobs), output.out / "grid.png")


def _generate(pipeline: Pipeline, jobs: Sequence[_Job], options: ResolvedOptions, batch_size: int) -> Iterator[Tensor]:
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    for batch in pipeline.generate(prompts, seeds, options, batch_size):
        yield from batch


def _save_pictures(
    pictures: Iterator[Tensor], jobs: Sequence[_Job], options: ResolvedOptions, output: OutputOptions
) -> list[Tensor]:
    """Save each picture as it comes; return the first ones, for the grid."""
    first: list[Tensor] = []
    for index, picture in enumerate(tqdm(pictures, total=len(jobs), unit="picture")):
        prompt, seed = jobs[index]
        metadata = {"prompt": prompt, "seed": str(seed), **_metadata(options)} if output.metadata else None
        save_png(to_image(picture), output.out / file_name(seed, index, prompt), metadata)
        if index < GRID:
            first.append(picture)
    return first


def _metadata(options: ResolvedOptions) -> dict[str, str]:
    return {"settings": json.dumps(options.settings())}


def _load(model: Path, guides: GuideModels, device: torch.device, precision: torch.dtype | None) -> Pipeline:
    pipeline = Pipeline.load(model, device, precision)
    classifier = None if guides.classifier is None else NoisyClassifier.load(guides.classifier, device)
    worse = guides.autoguidance_model
    return pipeline.with_guides(classifier, None if worse is None else Pipeline.load(worse, device, precision))


def _check_prompts(pipeline: Pipeline, texts: list[str], options: ResolvedOptions) -> list[str]:
    """Return the prompts, once they are known to fit the model and its guides."""
    texts = _unconditional_prompts(pipeline, texts, options) if pipeline.conditioner.null is None else texts
    if not texts:
        raise UserError("this model samples from prompts or class names; give at least one, or --prompts_file")
    guided = pipeline.conditioner.null is not None and options.guidance_scale != 1
    pipeline.conditioner.prepare([*texts, options.negative_prompt or ""] if guided else texts)
    if pipeline.autoguidance_model is not None:
        pipeline.autoguidance_model.conditioner.prepare(texts)
    pipeline.labels(texts, options)
    return texts


def _unconditional_prompts(pipeline: Pipeline, texts: list[str], options: ResolvedOptions) -> list[str]:
    """Return the prompts of an unconditional model: an empty one, or a classifier's classes."""
    classes = pipeline.classifier is not None and options.classifier_class is None
    if classes and not texts:
        raise UserError("a classifier needs a class; give class names as prompts, or --classifier_class NAME")
    if texts and not classes:
        raise UserError(f"this model is unconditional and takes no prompt, got {texts[0]!r:.80}; use --count alone")
    return texts or [""]
