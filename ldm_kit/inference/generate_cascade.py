"""Generate pictures with a cascade into a folder: one PNG each and a grid, of the last model or of every one."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config, UserError
from ldm_kit.inference.generate import GRID, GenerationResult, Job, check_prompts, save_grid, save_pictures
from ldm_kit.inference.requests import CascadeOptions, GenerationRequest, OutputOptions
from ldm_kit.models.cascade import Cascade, StagePictures
from ldm_kit.models.folder import CASCADE, INDEX, autocast_dtype, device_named, model_folder, read_json
from ldm_kit.models.options import ResolvedOptions, SamplingOptions
from ldm_kit.models.provenance import provenance
from ldm_kit.models.stage_options import shared_options, values_by_stage, with_values
from ldm_kit.paths import check_writable
from ldm_kit.viz.png import unused_path


def is_cascade(model: Path) -> bool:
    """Return whether a folder holds a cascade; False for folders without a model_index.json."""
    path = model_folder(model) / INDEX
    return path.is_file() and read_json(path, str(path)).get("_class_name") == CASCADE


def check_single(options: CascadeOptions, model: Path) -> None:
    """Check that no option of a cascade is given for the single model in a folder; raises UserError if one is."""
    for name in sorted(options.model_fields_set) if model_folder(model).is_dir() else ():
        raise UserError(f"--{name} is for cascades, and {model} holds none")


def check_alone(*models: Config) -> None:
    """Check that no guide model and no LoRA is given for a cascade; raises UserError if one is."""
    for name in (name for each in models for name in sorted(each.model_fields_set)):
        raise UserError(f"--{name} is for a single model, and this is a cascade; expected it at one of its models")


def resolve_stages(cascade: Cascade, options: SamplingOptions, by_stage: Sequence[str]) -> tuple[ResolvedOptions, ...]:
    """Return the options of each model of a cascade, decided.

    Args:
        cascade: the models.
        options: options for all of them, of which each takes those that it has a use for.
        by_stage: options for single models, OPTION=A/B/... each, which take the place of those for all.

    Raises:
        UserError: an option is of use to no model, is out of range, or does not fit its model.
    """
    values = values_by_stage(by_stage, len(cascade.stages))
    return cascade.resolve(with_values(shared_options(options, cascade.stages), values))


def cascade_to_folder(
    model: Path,
    request: GenerationRequest,
    options: SamplingOptions,
    output: OutputOptions | None = None,
    stages: CascadeOptions | None = None,
) -> GenerationResult:
    """Generate the requested pictures with a cascade as PNGs, and grid.png, into the folder `output.out`.

    Nothing is overwritten, as by `generate_to_folder`.

    Args:
        model: the cascade's folder.
        request: prompts, first seed, number of pictures of each prompt, and batch size.
        options: how pictures are sampled, by all models.
        output: folder, device, precision and metadata; None: the defaults.
        stages: options of single models, and whether the pictures of every model are written, into the sub-folders
            stage_1, stage_2, ... of the last; None: the defaults.

    Returns:
        Number of final pictures, path of their grid, and a note on the options saved with the models.

    Raises:
        UserError: the cascade or the device does not exist, or prompts or options do not fit; no picture is written.
        NonFiniteError: a network or the sampler gave NaN or infinity.
    """
    output, stages = output or OutputOptions(), stages or CascadeOptions()
    texts = request.texts()
    for name in ("image", "mask"):
        if getattr(request, name) is not None:
            raise UserError(f"--{name} is for models with a picture as condition, and a cascade samples its own")
    check_writable(output.out)
    device = device_named(output.device)
    precision = autocast_dtype(output.precision, device)
    cascade = Cascade.load(model, device, precision)
    resolved = resolve_stages(cascade, options, stages.by_stage)
    texts = check_prompts(cascade.base, texts, resolved[0])
    jobs = [Job(text, request.seed + k) for text in texts for k in range(request.count)]
    out = output.out if "out" in output.model_fields_set else unused_path(output.out)
    settings = json.dumps([each.settings() for each in resolved])
    metadata = {"settings": settings, **provenance(model, precision)} if output.metadata else None
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    last = len(cascade.stages) - 1
    folders = [out / f"stage_{number}" if stages.stage_pictures else None for number in range(1, last + 1)] + [out]
    batches = _with_bar(cascade.batches(prompts, seeds, resolved, request.batch_size), len(jobs) * len(folders))
    pictures = _save_stages(batches, jobs, folders, metadata)
    grids = [
        save_grid(own, jobs, request.count, folder, metadata)
        for own, folder in zip(pictures, folders, strict=True)
        if folder is not None
    ]
    notes = [f"stage {number}: {each.note}" for number, each in enumerate(resolved, 1) if each.note]
    return GenerationResult(len(jobs), grids[-1], "\n".join(notes))


def _with_bar(batches: Iterator[StagePictures], total: int) -> Iterator[StagePictures]:
    """Yield the batches; show a progress bar over the pictures of all models, `total` in all."""
    with tqdm(total=total, unit="picture") as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.pictures))


def _save_stages(
    batches: Iterator[StagePictures],
    jobs: Sequence[Job],
    folders: Sequence[Path | None],
    metadata: Mapping[str, str] | None,
) -> list[list[Tensor]]:
    """Save the pictures of each model as PNGs as soon as they are sampled; return the first `GRID` of each model.

    Args:
        batches: pictures of each model in turn, batch after batch.
        jobs: prompt and seed of each final picture.
        folders: the folder for each model's pictures; None: they are not saved.
        metadata: metadata of every PNG, to which the stage is added; None: no metadata at all.
    """
    first: list[list[Tensor]] = [[] for _ in folders]
    finished = [0] * len(folders)
    for stage, pictures in batches:
        folder, start = folders[stage], finished[stage]
        finished[stage] += len(pictures)
        if folder is not None:
            text = None if metadata is None else {**metadata, "stage": f"{stage + 1} of {len(folders)}"}
            saved = save_pictures(pictures, jobs[start : finished[stage]], folder, text)
            first[stage] = [*first[stage], *saved][:GRID]
    return first
