"""What an evaluation judges: samples of a model, reconstructions by an autoencoder, or the pictures in a folder."""

from pathlib import Path

from autoencoder import saved
from autoencoder.base import AutoencoderError
from ldm_kit.config import UserError
from ldm_kit.inference.evaluate_autoencoders import open_autoencoder
from ldm_kit.inference.evaluate_folders import Folder
from ldm_kit.inference.evaluate_reference import run_of
from ldm_kit.inference.evaluate_sampled import Sampled, SampledCascade, Subject
from ldm_kit.inference.evaluate_semantic import open_semantics
from ldm_kit.inference.generate import load_guided
from ldm_kit.inference.generate_cascade import check_alone
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.methods.export import saved_model
from ldm_kit.models.cascade import Cascade
from ldm_kit.models.folder import (
    CASCADE,
    CLASSIFIER,
    INDEX,
    SEMANTIC,
    autocast_dtype,
    device_named,
    model_folder,
    read_json,
)
from ldm_kit.models.options import SamplingOptions
from ldm_kit.models.provenance import provenance

_OF_SEMANTIC = ("encode_steps", "decode_steps", "codes", "edits", "perceptual")  # fields of a request


def open_subject(
    path: Path, request: EvaluationRequest, options: SamplingOptions | None, guides: GuideModels | None
) -> Subject:
    """Open what is at `path`: a diffusion model, a semantic model, an autoencoder, or a folder of pictures.

    Of a model also its run or checkpoint.

    Raises:
        UserError: there is no such thing, the run has no finished model, the model is a noisy classifier, or options,
            guides or the request do not fit it.
    """
    folder = saved_model(path, device=request.device)
    given = sorted({name for model in (options, guides) if model is not None for name in model.model_fields_set})
    kind = _kind(model_folder(folder))
    if kind == SEMANTIC:
        if given:
            raise UserError(f"--{given[0]} is for diffusion models, and {path} holds a semantic model")
        return open_semantics(folder, request)
    for name in (name for name in _OF_SEMANTIC if name in request.model_fields_set):
        raise UserError(f"--{name} is for semantic models, and {path} holds none")
    if kind == CLASSIFIER:
        raise UserError(
            f"{path} holds a noisy classifier, which samples no pictures (--classifier takes it as a guide); expected "
            "a diffusion model, a semantic model, an autoencoder or a folder of pictures"
        )
    if kind == CASCADE:
        return _sampled_cascade(folder, request, options or SamplingOptions(), guides or GuideModels())
    if kind is not None:
        return _sampled(folder, request, options or SamplingOptions(), guides or GuideModels())
    given += ["precision"] if "precision" in request.model_fields_set else []
    if given:
        raise UserError(f"--{given[0]} is for models that are sampled, and {path} holds none")
    try:
        saved.find(folder)
    except AutoencoderError:
        if run_of(path) is not None:
            raise UserError(f"the run in {run_of(path)} has no finished model, and no checkpoint to take") from None
        return Folder.open(path)
    return open_autoencoder(folder, run_of(path), request.device)


def _kind(folder: Path) -> str | None:
    """Return the class name in the index of a model's folder; None: it has no index."""
    index = folder / INDEX
    return str(read_json(index, str(index)).get("_class_name")) if index.exists() else None


def _sampled(folder: Path, request: EvaluationRequest, options: SamplingOptions, guides: GuideModels) -> Sampled:
    device = device_named(request.device)
    precision = autocast_dtype(request.precision, device)
    pipeline = load_guided(folder, guides, device, precision)
    resolved = options.resolve(pipeline)
    height, width = resolved.size(pipeline)
    if height != width:
        raise UserError(
            f"--height and --width ask for {width} x {height} pixels, but the pictures that samples are compared with "
            "are square; expected equal ones"
        )
    return Sampled(pipeline, resolved, provenance(folder, precision, **dict(guides)))


def _sampled_cascade(
    folder: Path, request: EvaluationRequest, options: SamplingOptions, guides: GuideModels
) -> SampledCascade:
    check_alone(guides)
    device = device_named(request.device)
    precision = autocast_dtype(request.precision, device)
    cascade = Cascade.load(folder, device, precision)
    stages = cascade.resolve(options)
    model = provenance(folder, precision)
    return SampledCascade(cascade.base, stages[0], model, cascade=cascade, stages=stages)
