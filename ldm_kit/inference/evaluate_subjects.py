"""What an evaluation judges: samples of a model, reconstructions by an autoencoder, or the pictures in a folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from autoencoder import saved
from autoencoder.base import AutoencoderError, reduction
from autoencoder.perceptual import Perceptual
from ldm_kit.config import UserError
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.inference.evaluate_folders import NO_ORIGINALS, Folder, JudgedBatch
from ldm_kit.inference.evaluate_reference import Reference, cycled, prompts_of
from ldm_kit.inference.generate import load_guided
from ldm_kit.inference.requests import EvaluationRequest, GuideModels
from ldm_kit.memory import BatchSize
from ldm_kit.methods import read_run
from ldm_kit.methods.autoencoder_config import AutoencoderRun
from ldm_kit.methods.autoencoder_metrics import reconstruct
from ldm_kit.methods.export import is_checkpoint, saved_model
from ldm_kit.models.folder import CLASSIFIER, INDEX, SEMANTIC, autocast_dtype, device_named, model_folder, read_json
from ldm_kit.models.manifest import open_first_stage
from ldm_kit.models.measures import CLIP, PICTURES, PROMPTS
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.pipeline import Pipeline
from ldm_kit.models.provenance import manifest_hash, provenance

NO_CAPTIONS: dict[str, str] = dict.fromkeys((*PROMPTS, CLIP), "it is for models that are sampled with captions")
_SAMPLE_NOTHING = {  # by _class_name in a model's index
    CLASSIFIER: "a noisy classifier, which samples no pictures (--classifier takes it as a guide)",
    SEMANTIC: "a semantic model, which edit.py report measures",
}


class Subject(Protocol):
    """What is judged."""

    kind: str  # "model", "autoencoder" or "folder"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """JSON values that say what was judged: the model's sha256, options of sampling and so on."""
        ...

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        ...

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return the row of the reference that each picture to judge belongs to; raise UserError if that cannot be."""
        ...

    def batches(self, reference: Reference, rows: Sequence[int], seed: int, size: BatchSize) -> Iterator[JudgedBatch]:
        """Yield the pictures to judge, batch by batch, in the order of `rows`."""
        ...


@dataclass(eq=False)
class Sampled:
    """Pictures that a diffusion model samples, for the captions or classes of reference pictures."""

    pipeline: Pipeline
    options: ResolvedOptions
    model: dict[str, str]  # sha256 of the model and its guides, precision, release
    kind: str = "model"

    @property
    def takes_classes(self) -> bool:
        """Whether the model, or the classifier that guides an unconditional one, is sampled with class names."""
        if self.pipeline.conditioner.null is None:
            return self.pipeline.classifier is not None and self.options.classifier_class is None
        return self.pipeline.conditioner.modality == "classes"

    @property
    def takes_prompts(self) -> bool:
        """Whether the model is sampled with captions or class names."""
        return self.pipeline.conditioner.null is not None or self.takes_classes

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures."""
        vae: Any = self.pipeline.vae
        channels, side, _ = self.pipeline.latent_shape
        return (channels, side) if vae is None else (vae.config.out_channels, side * reduction(vae))

    @property
    def description(self) -> dict[str, Any]:
        """The model's sha256, release and precision, and the options of sampling."""
        return {"kind": self.kind, **self.model, "sampling": self.options.settings()}

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        if self.takes_prompts and not self.takes_classes:
            return NO_ORIGINALS
        return {**NO_ORIGINALS, **NO_CAPTIONS}

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return evenly spaced rows of the reference; check that the model knows their captions or classes."""
        rows = cycled(len(reference.pictures), count or len(reference.pictures))
        prompts = sorted({*self._prompts(reference, rows)})
        if self.takes_classes:
            self.pipeline.conditioner.prepare(prompts)
        self.pipeline.labels(prompts, self.options)
        return rows

    def _prompts(self, reference: Reference, rows: Sequence[int]) -> list[str]:
        if not self.takes_prompts:
            return [""] * len(rows)
        return prompts_of(reference, rows, classes=self.takes_classes)

    def batches(self, reference: Reference, rows: Sequence[int], seed: int, size: BatchSize) -> Iterator[JudgedBatch]:
        """Sample a picture for each row, with the seeds `seed`, `seed` + 1, ..."""
        prompts, seeds = self._prompts(reference, rows), range(seed, seed + len(rows))
        for pictures in self.pipeline.generate(prompts, seeds, self.options, size):
            yield JudgedBatch(pictures, {})


@dataclass(eq=False)
class Reconstructed:
    """Reference pictures that an autoencoder has encoded to posterior means and decoded."""

    vae: Any
    perceptual: Perceptual | None  # distance that is measured; None: `missing` says why there is none
    missing: str
    sha256: str | None  # of the model's manifest
    weights_missing: bool = False  # whether there is no distance because its weights are missing
    kind: str = "autoencoder"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and side of the pictures; any side that the autoencoder's reduction divides fits."""
        return self.vae.config.in_channels, self.vae.config.sample_size

    @property
    def description(self) -> dict[str, Any]:
        """The model's sha256, and the network of the perceptual distance."""
        config = None if self.perceptual is None else self.perceptual.config.model_dump(mode="json")
        return {"kind": self.kind, "model": self.sha256, "perceptual": config}

    @property
    def impossible(self) -> dict[str, str]:
        """Why a measure cannot be taken, by the measure's name."""
        return NO_CAPTIONS if self.perceptual is not None else {**NO_CAPTIONS, "perceptual": self.missing}

    def rows(self, reference: Reference, count: int | None) -> list[int]:
        """Return evenly spaced rows of the reference; UserError: there are fewer than `count`."""
        total = len(reference.pictures)
        if count is not None and count > total:
            raise UserError(
                f"--count is {count}, but the reference {reference.name} has {total} pictures to reconstruct"
            )
        return cycled(total, count or total)

    def batches(self, reference: Reference, rows: Sequence[int], seed: int, size: BatchSize) -> Iterator[JudgedBatch]:
        """Encode and decode the pictures of the rows, and compare each with its original."""
        measures = {name: measure.compare for name, measure in PICTURES.items() if measure.compare is not None}
        device = next(self.vae.parameters()).device

        @torch.no_grad()
        def batch(indices: range) -> JudgedBatch:
            x = to_unit(reference.pictures.pictures([rows[i] for i in indices])).to(device)
            y = reconstruct(self.vae, x)
            values = {name: measure(x, y).cpu() for name, measure in measures.items()}
            if self.perceptual is not None:
                values["perceptual"] = self.perceptual(y, x).cpu()
            return JudgedBatch(to_bytes(y).cpu(), values)

        yield from size.batches(len(rows), batch)


def run_of(path: Path) -> Path | None:
    """Return the run's folder to which a run, its model/ or one of its checkpoints belongs; None: there is none."""
    candidates = (path, *([path.parent] if path.name == "model" or is_checkpoint(path) else []))
    return next((folder for folder in candidates if (folder / "config.yaml").is_file()), None)


def open_subject(
    path: Path, request: EvaluationRequest, options: SamplingOptions | None, guides: GuideModels | None
) -> Subject:
    """Open what is at `path`: a diffusion model, an autoencoder, the run or checkpoint of one, or a folder of pictures.

    Raises:
        UserError: there is no such thing, the run has no finished model, the model samples no pictures, or options or
            guides do not fit it.
    """
    folder = saved_model(path, device=request.device)
    if (model_folder(folder) / INDEX).exists():
        _check_samples(model_folder(folder), path)
        return _sampled(folder, request, options or SamplingOptions(), guides or GuideModels())
    given = [name for model in (options, guides) if model is not None for name in model.model_fields_set]
    given += ["precision"] if "precision" in request.model_fields_set else []
    if given:
        raise UserError(f"--{sorted(given)[0]} is for models that are sampled, and {path} holds none")
    try:
        saved.find(folder)
    except AutoencoderError:
        if run_of(path) is not None:
            raise UserError(f"the run in {run_of(path)} has no finished model, and no checkpoint to take") from None
        return Folder.open(path)
    return _reconstructed(path, folder, request)


def _check_samples(folder: Path, path: Path) -> None:
    """Check that the model in a folder samples pictures; UserError: it is a noisy classifier or a semantic model."""
    kind = read_json(folder / INDEX, str(folder / INDEX)).get("_class_name")
    if (what := _SAMPLE_NOTHING.get(str(kind))) is not None:
        raise UserError(f"{path} holds {what}; expected a diffusion model, an autoencoder or a folder of pictures")


def _sampled(folder: Path, request: EvaluationRequest, options: SamplingOptions, guides: GuideModels) -> Sampled:
    device = device_named(request.device)
    precision = autocast_dtype(request.precision, device)
    pipeline = load_guided(folder, guides, device, precision)
    return Sampled(pipeline, options.resolve(pipeline), provenance(folder, precision, **dict(guides)))


def _reconstructed(path: Path, folder: Path, request: EvaluationRequest) -> Reconstructed:
    device = device_named(request.device)
    first_stage: Any = open_first_stage(folder)
    vae = first_stage.to(device)
    weights_missing = False
    run, perceptual, missing = run_of(path), None, "the autoencoder belongs to no run, whose distance it would be"
    config = None if run is None else read_run(run / "config.yaml")
    if isinstance(config, AutoencoderRun):
        missing = "the run has none (perceptual.spec is none)"
        if config.perceptual.spec != "none":
            try:
                perceptual = Perceptual(config.perceptual).to(device)
            except AutoencoderError as error:
                missing, weights_missing = str(error), True
    return Reconstructed(vae, perceptual, missing, manifest_hash(saved.find(folder)), weights_missing)
