"""Generate pictures from prompts into a folder: one PNG each, and a grid of all."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError
from ldm_kit.data.value_range import ValueRange
from ldm_kit.inference.given_pictures import origins, read_given
from ldm_kit.inference.requests import GenerationRequest, GuideModels, OutputOptions
from ldm_kit.inference.value_output import save_values
from ldm_kit.methods.export import saved_model
from ldm_kit.methods.lora_export import lora_files
from ldm_kit.models.classifier import NoisyClassifier
from ldm_kit.models.folder import autocast_dtype, device_named
from ldm_kit.models.image_prior import decoder_prompts
from ldm_kit.models.lora_paths import LoraPath
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.picture_condition import Pictures
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import provenance
from ldm_kit.paths import check_writable
from ldm_kit.viz.grid import columns_for, enlargement, grid, to_image
from ldm_kit.viz.png import file_name, next_index, save_png, unused_path

GRID = 400  # most pictures in the grid; further ones are saved, but not shown there


class GenerationResult(NamedTuple):
    """Result of `generate_to_folder`; `str(result)` is the text that the command prints."""

    pictures: int  # number of generated pictures
    path: Path  # the grid, which shows them together
    note: str = ""  # sentence on the options whose values were saved with the model; empty if none were

    def __str__(self) -> str:
        text = f"{self.pictures} pictures in {self.path.parent}, all of them in {self.path}"
        return f"{text}\n{self.note}" if self.note else text


class Job(NamedTuple):
    """The prompt and the random seed of one picture to generate."""

    prompt: str  # a prompt or a class name; "": unconditional
    seed: int


def generate_to_folder(
    model: Path,
    request: GenerationRequest,
    options: SamplingOptions,
    guides: GuideModels | None = None,
    output: OutputOptions | None = None,
    *,
    lora: Sequence[str] = (),
) -> GenerationResult:
    """Generate the requested pictures as PNGs, and grid.png, into the folder `output.out`.

    Nothing is overwritten: if the folder holds pictures, the new files' numbers continue from theirs, and the grid is
    grid-2.png. If the user gave no `out` and the default folder is not empty, a new folder beside it is used.

    Args:
        model: the folder of a saved model, of a run or of a checkpoint.
        request: prompts, first seed, number of pictures of each prompt, and batch size.
        options: how the pictures are sampled.
        guides: folders of the models that guide sampling; None: no guides.
        output: folder, device, precision and metadata; None: the defaults.
        lora: LoRA files, PATH or PATH:SCALE each, which are merged into the model's weights in this order.

    Returns:
        Number of pictures, path of the grid, and a note on the options saved with the model.

    Raises:
        UserError: the model or the device does not exist, or prompts, guides, options or the pictures that condition
            the samples do not fit the model; no picture is written.
        NonFiniteError: a network or the sampler gave NaN or infinity. Pictures of earlier batches are written then, but
            none of this batch.
    """
    guides, output = guides or GuideModels(), output or OutputOptions()
    request = request.model_copy(update={"prompts": tuple(request.texts()), "prompts_file": None})
    check_writable(output.out)
    device = device_named(output.device)
    precision = autocast_dtype(output.precision, device)
    loras = lora_files(lora)
    pipeline = load_guided(model, guides, device, precision, loras)
    return generate_with(pipeline, request, options, output, provenance(model, precision, loras, **dict(guides)))


def generate_with(
    pipeline: Pipeline,
    request: GenerationRequest,
    options: SamplingOptions,
    output: OutputOptions,
    origin: Mapping[str, str],
) -> GenerationResult:
    """Generate the requested pictures by a loaded model with its guides, as `generate_to_folder` does.

    `origin` is metadata of all PNGs, the `provenance` of the model; of `output`, device and precision are not used.
    """
    resolved, texts = options.resolve(pipeline), request.texts()
    given = read_given(request, pipeline, resolved.size(pipeline))
    texts = check_prompts(pipeline, texts, resolved, prior=pipeline.prior is not None and not given)
    jobs = [Job(text, request.seed + k) for text in texts for k in range(request.count)]
    out = output.out if "out" in output.model_fields_set else unused_path(output.out)
    metadata = {
        "settings": json.dumps(resolved.settings()),
        **origins(request),
        **origin,
    }
    text = metadata if output.metadata else None
    pictures = _generate(pipeline, jobs, resolved, request.batch_size, given)
    values = pipeline.value_range
    if text is not None and values is not None:
        text = {**text, "range": str(values)}
    first = save_pictures(tqdm(pictures, total=len(jobs), unit="picture"), jobs, out, text, values=values)
    return GenerationResult(len(jobs), save_grid(first, jobs, request.count, out, text), resolved.note)


def _generate(
    pipeline: Pipeline, jobs: Sequence[Job], options: ResolvedOptions, batch_size: int, given: Pictures
) -> Iterator[Tensor]:
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    for batch in pipeline.generate(prompts, seeds, options, batch_size, pictures=given):
        yield from batch


def save_pictures(
    pictures: Iterable[Tensor],
    jobs: Sequence[Job],
    out: Path,
    metadata: Mapping[str, str] | None,
    *,
    values: ValueRange | None = None,
) -> list[Tensor]:
    """Save each picture as a PNG as soon as it is generated; return the first `GRID` pictures, for the grid.

    Args:
        pictures: yields the pictures, uint8 [C, H, W], or uint16 with `values`, in the order of `jobs`.
        jobs: prompt and seed of each picture.
        out: the folder.
        metadata: metadata of every PNG, to which the picture's prompt and seed are added; None: no metadata at all.
        values: what the levels stand for, in which the pictures are written too (`save_values`); None: 8 bits.
    """
    first: list[Tensor] = []
    start = next_index(out)
    for index, picture in enumerate(pictures):
        prompt, seed = jobs[index]
        text = None if metadata is None else {"prompt": prompt, "seed": str(seed), **metadata}
        path = out / file_name(seed, start + index, prompt)
        if values is not None:
            save_values(picture, values, path, text)
        save_png(to_image(picture), path, text)
        if index < GRID:
            first.append(picture)
    return first


def save_grid(
    pictures: Sequence[Tensor], jobs: Sequence[Job], count: int, out: Path, metadata: Mapping[str, str] | None
) -> Path:
    """Save pictures, uint8 [C, R, R] each, as one grid with their prompts in the folder `out`; return its path.

    `count` is the number of pictures of each prompt. The file is grid.png, or grid-2.png and so on if there is one.
    """
    captions = [job.prompt for job in jobs[: len(pictures)]]
    scale = enlargement(pictures[0].shape[-1])
    sheet = grid(torch.stack([*pictures]), columns_for(len(pictures), count), scale=scale, captions=captions)
    path = unused_path(out / "grid.png")
    save_png(sheet, path, metadata)
    return path


def load_guided(
    model: Path,
    guides: GuideModels,
    device: torch.device,
    precision: torch.dtype | None,
    lora: Sequence[LoraPath] = (),
) -> Pipeline:
    """Load a diffusion model with its guides from folders of saved models, runs or checkpoints.

    Args:
        model: folder of the model.
        guides: folders of the guides.
        device: device of all networks.
        precision: dtype of autocast while sampling; None: no autocast.
        lora: LoRA files, merged into the model's weights.

    Raises:
        UserError: a folder holds no such model, or a guide or a LoRA does not fit the model.
    """
    pipeline = Pipeline.load(saved_model(model), device, precision, lora)
    classifier = None if guides.classifier is None else NoisyClassifier.load(saved_model(guides.classifier), device)
    worse = None if guides.autoguidance_model is None else saved_model(guides.autoguidance_model)
    return pipeline.with_guides(classifier, None if worse is None else Pipeline.load(worse, device, precision))


def check_prompts(pipeline: Pipeline, texts: list[str], options: ResolvedOptions, *, prior: bool = False) -> list[str]:
    """Check that the user's prompts `texts` fit the model `pipeline` and its guides; return the prompts to sample with.

    For an unconditional model these are the classes to which a classifier guides it, or one empty prompt. `options` are
    the sampling options. With `prior`, prompts are those of the model's prior, which samples the embeddings of images.

    Raises:
        UserError: the model is conditional and `texts` is empty, or the classifier does not know a class.
        ConditioningError: the model or its guide model cannot encode a prompt.
    """
    texts = _unconditional_prompts(pipeline, texts, options) if pipeline.conditioner.null is None else texts
    alone = pipeline.conditioner.image_conditioner is pipeline.conditioner
    if alone and (pipeline.prior is None or not prior or pipeline.prior.prior.conditioner.null is None):
        texts = texts or [""]
    if not texts:
        raise UserError("this model samples from prompts or class names; give at least one, or --prompts_file")
    guided, own = pipeline.conditioner.null is not None and options.guides, texts
    if prior and pipeline.prior is not None:
        pipeline.prior.check_prompts(texts)
        own = decoder_prompts(pipeline, texts)
    pipeline.conditioner.prepare([*own, options.negative_prompt or ""] if guided else own)
    if pipeline.autoguidance_model is not None:
        pipeline.autoguidance_model.conditioner.prepare(own)
    pipeline.labels(texts, options)
    return texts


def _unconditional_prompts(pipeline: Pipeline, texts: list[str], options: ResolvedOptions) -> list[str]:
    """Check the user's prompts `texts` for the unconditional model `pipeline`; return the prompts to sample with.

    If a classifier guides the model and `options` name no class for the classifier, `texts` are the classes to guide
    to, at least one, and are returned. Otherwise `texts` must be empty, and one empty prompt is returned.

    Raises:
        UserError: a classifier guides the model and no class is given, or a prompt is given that nothing uses.
    """
    classes = pipeline.classifier is not None and options.classifier_class is None
    if classes and not texts:
        raise UserError("a classifier needs a class; give class names as prompts, or --classifier_class NAME")
    if texts and not classes:
        raise UserError(f"this model is unconditional and takes no prompt, got {texts[0]!r:.80}; use --count alone")
    return texts or [""]
