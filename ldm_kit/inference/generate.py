"""Generation into a folder: prompts in, named PNGs and a grid out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.inference.requests import GenerationRequest, GuideModels, OutputOptions
from ldm_kit.methods.export import saved_model
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.folder import autocast_dtype, device_named
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import provenance
from ldm_kit.paths import check_writable
from ldm_kit.viz.grid import columns_for, enlargement, grid, to_image
from ldm_kit.viz.png import file_name, save_png, unused_path

GRID = 400  # most pictures in the grid


class GenerationResult(NamedTuple):
    """How many pictures were generated, the picture that shows them together, and which settings the model decided."""

    pictures: int
    path: Path
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.pictures} pictures in {self.path.parent}, all of them in {self.path}"
        return f"{text}\n{self.note}" if self.note else text


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
        model: a saved model's folder, a run's, or a checkpoint's.
        request: prompts, seeds and how many.
        options: how they are sampled.
        guides: folders of the models that guide; None: none.
        output: folder, device, precision and metadata; None: the defaults.

    Raises:
        UserError: no such model or device; prompts, guides or options that do not fit the model. Nothing is written.
            NonFiniteError: NaN or infinity was computed; of that batch nothing is written.
    """
    guides, output = guides or GuideModels(), output or OutputOptions()
    texts = request.texts()
    check_writable(output.out)
    device = device_named(output.device)
    precision = autocast_dtype(output.precision, device)
    pipeline = _load(model, guides, device, precision)
    resolved = options.resolve(pipeline)
    texts = _check_prompts(pipeline, texts, resolved)
    jobs = [_Job(text, request.seed + k) for text in texts for k in range(request.count)]
    out = output.out if "out" in output.model_fields_set else unused_path(output.out)
    metadata = {"settings": json.dumps(resolved.settings()), **provenance(model, precision, **dict(guides))}
    text = metadata if output.metadata else None
    first = _save_pictures(_generate(pipeline, jobs, resolved, request.batch_size), jobs, out, text)
    columns = columns_for(len(first), request.count)
    captions = [job.prompt for job in jobs[:GRID]]
    sheet = grid(torch.stack(first), columns, scale=enlargement(first[0].shape[-1]), captions=captions)
    save_png(sheet, out / "grid.png", text)
    return GenerationResult(len(jobs), out / "grid.png", resolved.note)


def _generate(pipeline: Pipeline, jobs: Sequence[_Job], options: ResolvedOptions, batch_size: int) -> Iterator[Tensor]:
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    for batch in pipeline.generate(prompts, seeds, options, batch_size):
        yield from batch


def _save_pictures(
    pictures: Iterator[Tensor], jobs: Sequence[_Job], out: Path, metadata: Mapping[str, str] | None
) -> list[Tensor]:
    """Save each picture as it comes; return the first ones, for the grid."""
    first: list[Tensor] = []
    for index, picture in enumerate(tqdm(pictures, total=len(jobs), unit="picture")):
        prompt, seed = jobs[index]
        text = None if metadata is None else {"prompt": prompt, "seed": str(seed), **metadata}
        save_png(to_image(picture), out / file_name(seed, index, prompt), text)
        if index < GRID:
            first.append(picture)
    return first


def _load(model: Path, guides: GuideModels, device: torch.device, precision: torch.dtype | None) -> Pipeline:
    pipeline = Pipeline.load(saved_model(model), device, precision)
    classifier = None if guides.classifier is None else NoisyClassifier.load(saved_model(guides.classifier), device)
    worse = None if guides.autoguidance_model is None else saved_model(guides.autoguidance_model)
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
