"""Read the picture, and the mask, that the user of a model with a picture condition gives."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from conditioning.condition import ConditioningError
from conditioning.pictures import IMAGE, MASK
from ldm_kit.config import UserError
from ldm_kit.data.image_files import decode, load_image
from ldm_kit.data.pixels import fitted
from ldm_kit.inference.requests import GenerationRequest
from ldm_kit.models.picture_condition import check_pictures
from ldm_kit.models.pipeline import Pipeline

_HALF = 0.5  # a grey mask is white from here on


def read_given(request: GenerationRequest, pipeline: Pipeline, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the pictures that a request names, as `Pipeline.generate` takes them, after checking them.

    Args:
        request: names of the files of `image` and `mask`; None where it has none.
        pipeline: the model.
        size: height and width of a sample in pixels.

    Returns:
        `image`, uint8 [1, C, h, w], and `mask`, bool [1, h, w], True where it is white; those that are given. An image
        that is embedded is scaled and cropped as training pictures are.

    Raises:
        BadPicture: a file is no picture.
        UserError: the model needs one that is not given, or takes none, or another size, or the mask is all black.
    """
    paths = {name: path for name, path in ((IMAGE, request.image), (MASK, request.mask)) if path is not None}
    if pipeline.conditioner.reads_pictures and paths.keys() == {IMAGE}:
        return {IMAGE: load_image(paths[IMAGE], pipeline.resolution, pipeline.channels)[None]}
    if pipeline.prior is not None and not paths:
        return {}
    if pipeline.picture is None or paths.keys() != {*pipeline.picture.given}:
        check_pictures(pipeline, {name: torch.zeros(1, 1, 1, 1) for name in paths}, 1, size)  # which says what is wrong
        return {}
    try:
        sides = pipeline.picture.sides(size)
    except ConditioningError as error:
        raise UserError(str(error)) from None
    given = {IMAGE: _read(paths[IMAGE], sides, pipeline, size)}
    if MASK in paths:
        given[MASK] = _mask(paths[MASK], sides)
    check_pictures(pipeline, given, 1, size)
    return given


def origins(request: GenerationRequest) -> dict[str, str]:
    """Return, for a picture's metadata, the file name and the start of the sha256 of each picture that was given."""
    paths = {name: path for name, path in ((IMAGE, request.image), (MASK, request.mask)) if path is not None}
    return {name: f"{path.name} (sha256 {_sha256(path)[:16]})" for name, path in paths.items()}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path, sides: tuple[int, int], pipeline: Pipeline, size: tuple[int, int]) -> Tensor:
    """Return a picture, uint8 [1, C, *sides], for a sample of `size` (h, w); UserError: it has another size."""
    image, (height, width) = decode(path).image, sides
    if image.size != (width, height):
        raise UserError(
            f"{path} is {image.size[0]} x {image.size[1]} pixels, but this model samples {size[1]} x {size[0]} and "
            f"takes {width} x {height}; scale and crop it first"
        )
    return fitted(image, sides, pipeline.channels)[None]


def _mask(path: Path, sides: tuple[int, int]) -> Tensor:
    """Return a mask, bool [1, *sides], True where it is white; raises UserError if it is of another size or black.

    A transparent pixel counts as black.
    """
    image, (height, width) = decode(path).image, sides
    if image.size != (width, height):
        raise UserError(
            f"the mask {path} is {image.size[0]} x {image.size[1]} pixels; expected the {width} x {height} of the "
            "picture"
        )
    mask = fitted(image, sides, 1, (0, 0, 0)) >= 255 * _HALF
    if not mask.any():
        raise UserError(f"the mask {path} is black all over; expected white where the picture is to be made anew")
    return mask
