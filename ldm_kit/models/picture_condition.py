"""The picture condition of a saved model: its file, and the maps that it makes of the pictures that a user gives."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conditioning.condition import Condition, ConditioningError
from conditioning.inpainting import Inpainting
from conditioning.pictures import IMAGE, LEVEL, Frame, PictureCondition, rows, unit
from conditioning.registry import PICTURES
from ldm_kit.config import UserError, check
from ldm_kit.data.images import to_bytes, to_unit
from ldm_kit.diffusion.rng import SeedDraws
from ldm_kit.models.decoding import encode_unit
from ldm_kit.models.folder import ModelFolder, read_json
from ldm_kit.models.sizes import latent_shape_at

if TYPE_CHECKING:
    from ldm_kit.models.pipeline import Pipeline

FILE = "picture_condition.json"
INPAINT_CLASS = "StableDiffusionInpaintPipeline"  # diffusers' pipeline of models with mask and picture
Pictures = Mapping[str, Tensor]
"""What a user gives, by name: `image` uint8 [N, C, h, w], `mask` bool [N, h, w]; N is 1 for one that is for all."""


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


@torch.no_grad()
def picture_maps(
    pipeline: "Pipeline", given: Mapping[str, Tensor], seeds: Sequence[int], size: tuple[int, int]
) -> Condition | None:
    """Return the maps, and the noise level if there is one, of B samples; None: the model has no picture condition.

    Args:
        pipeline: the model.
        given: what `check_pictures` and `with_level` returned, for these samples.
        seeds: B seeds, of which the noise of a picture with a noise level is drawn.
        size: height and width of a sample in pixels.
    """
    if pipeline.picture is None:
        return None
    _, height, width = latent_shape_at(pipeline, size)
    frame = frame_of(pipeline.vae, (height, width), pipeline.device)
    there = {name: value.to(pipeline.device) for name, value in given.items()}
    return pipeline.picture.condition(there, frame, SeedDraws(seeds))


def finished(condition: PictureCondition | None, pictures: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return sampled pictures, uint8 [B, C, R, R], combined with what was given: inpainting keeps the rest."""
    return pictures if condition is None else to_bytes(condition.finish(to_unit(pictures), given))
