"""What a saved model makes of the pictures that a user gives: maps, or the embedding of an image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conditioning.base import Inputs
from conditioning.condition import Condition, ConditioningError
from conditioning.inpainting import Inpainting
from conditioning.pictures import IMAGE, LEVEL, Frame, PictureCondition, rows, unit
from conditioning.registry import PICTURES
from ldm_kit.config import UserError, check
from ldm_kit.data.levels import to_levels, to_unit
from ldm_kit.diffusion.rng import SeedDraws
from ldm_kit.models.decoding import encode_unit
from ldm_kit.models.folder import ModelFolder, read_json
from ldm_kit.models.sizes import latent_shape_at

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline

FILE = "picture_condition.json"
INPAINT_CLASS = "StableDiffusionInpaintPipeline"  # diffusers' pipeline of models with mask and picture
Pictures = Mapping[str, Tensor]
"""What a user gives, by name: `image` uint8 [N, C, h, w], `mask` bool [N, h, w]; N is 1 for one that is for all.

A model that is conditioned on an image takes `image` of any side, or `embedding`, float [N, D], in its place.
"""
EMBEDDING = "embedding"


@dataclass(frozen=True, eq=False)
class PictureInputs:
    """What a denoiser gets of the pictures that a user gave, for B samples."""

    maps: Condition | None = None  # those of a picture condition, which guidance keeps; None: there are none
    encoded: Inputs = field(default_factory=dict)  # the conditioner's inputs made of an image, which guidance drops


def write_picture_condition(folder: Path, condition: PictureCondition | None) -> None:
    """Write a picture condition's settings to picture_condition.json in a model's folder; None: nothing is written."""
    if condition is not None:
        text = json.dumps(condition.model_dump(mode="json"), indent=2)
        (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def read_picture_condition(folder: ModelFolder) -> PictureCondition | None:
    """Return the picture condition of a saved model; None: it has none.

    Models of diffusers' StableDiffusionInpaintPipeline are of kind inpainting without the file.

    Raises:
        UserError: the file is invalid.
    """
    path = folder.path / FILE
    if not path.exists():
        return Inpainting.model_validate({}) if folder.class_name == INPAINT_CLASS else None
    content = read_json(path, str(path))
    kinds = {kind.model_fields["kind"].default: kind for kind in PICTURES}
    if content.get("kind") not in kinds:
        raise UserError(f"{path}: kind is {content.get('kind')!r:.60}; expected one of {', '.join(kinds)}")
    return check(kinds[content["kind"]], content, str(path))


def frame_of(vae: Any, size: tuple[int, int], device: torch.device) -> Frame:
    """Return what the maps of a model must fit.

    Args:
        vae: its autoencoder, on `device`; None: a model of pixels.
        size: height and width of the denoiser's input.
        device: where pictures are encoded.
    """
    return Frame(size, None if vae is None else lambda x: encode_unit(vae, x.to(device)))


def check_pictures(
    pipeline: "Pipeline", pictures: Pictures | None, count: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Check what a user gives for samples; return it as `PictureCondition.condition` takes it, [N, ...] each.

    Args:
        pipeline: the model.
        pictures: what the user gives; None: nothing.
        count: number N of samples.
        size: height and width of a sample in pixels.

    Raises:
        UserError: the model needs pictures that are missing, or takes none, or they are of another size or number.
    """
    condition = pipeline.picture
    if pipeline.conditioner.reads_pictures:
        return _embeddings(pipeline, pictures or {}, count)
    if condition is None:
        if pictures:
            raise UserError(
                f"--{next(iter(pictures))} is for models with a picture as condition, and this one has none"
            )
        return {}
    given = {name: unit(value) for name, value in (pictures or {}).items()}
    try:
        condition.check({name: tuple(x.shape) for name, x in given.items()}, size, pipeline.channels)
        return rows(given, slice(None), count)
    except ConditioningError as error:
        raise UserError(str(error)) from None


def with_level(condition: PictureCondition | None, given: Mapping[str, Tensor], level: int | None) -> dict[str, Tensor]:
    """Return what a user gave, with the noise level of resolved options, where the condition takes one."""
    if condition is None or not condition.takes_level or level is None:
        return {**given}
    return {**given, LEVEL: torch.full((len(given[IMAGE]),), level)}


NEEDS_IMAGE = "this model is conditioned on an image; expected --image, a picture to vary"


def _embeddings(pipeline: "Pipeline", pictures: Pictures, count: int) -> dict[str, Tensor]:
    """Return the embedding of the image for each of `count` samples, as `embedding` [N, ...].

    Raises:
        UserError: there is neither an image nor an embedding, or it is of another shape, number or type.
    """
    if idle := [name for name in pictures if name not in (IMAGE, EMBEDDING)]:
        raise UserError(f"--{idle[0]} is for other models; {NEEDS_IMAGE}")
    if len(pictures) != 1:
        raise UserError(NEEDS_IMAGE if not pictures else f"got an image and an embedding of one; {NEEDS_IMAGE}")
    try:
        embedding = pictures[EMBEDDING] if EMBEDDING in pictures else pipeline.embed(pictures[IMAGE])
        pipeline.conditioner.embedded(embedding)
        return rows({EMBEDDING: embedding}, slice(None), count)
    except ConditioningError as error:
        raise UserError(str(error)) from None


@torch.no_grad()
def picture_inputs(
    pipeline: "Pipeline", given: Mapping[str, Tensor], seeds: Sequence[int], size: tuple[int, int]
) -> PictureInputs:
    """Return what the denoiser of a model gets of the pictures of B samples; nothing if the model takes none.

    Args:
        pipeline: the model.
        given: what `check_pictures` and `with_level` returned, for these samples.
        seeds: B seeds, of which the noise of a picture with a noise level is drawn.
        size: height and width of a sample in pixels.
    """
    if pipeline.conditioner.reads_pictures:
        return PictureInputs(encoded=pipeline.conditioner.embedded(given[EMBEDDING]))
    if pipeline.picture is None:
        return PictureInputs()
    _, height, width = latent_shape_at(pipeline, size)
    frame = frame_of(pipeline.vae, (height, width), pipeline.device)
    there = {name: value.to(pipeline.device) for name, value in given.items()}
    return PictureInputs(pipeline.picture.condition(there, frame, SeedDraws(seeds)))


def finished(condition: PictureCondition | None, pictures: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return sampled pictures, levels [B, C, R, R], combined with what was given: inpainting keeps the rest."""
    return pictures if condition is None else to_levels(condition.finish(to_unit(pictures), given), pictures.dtype)
