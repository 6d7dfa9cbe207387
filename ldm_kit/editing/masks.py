"""Masks of inpainting: read as pictures are, and scaled so that a pixel is new if any of the mask's pixels in it is."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.image_files import decode

_HALF = 128  # from which grey or alpha on a pixel is new
_VARIES = 32  # levels by which the colours of a picture differ at least, and those of a painted layer do not
_LIKE = 8  # mean difference in levels below which the mask's colours are the picture's
_log = logging.getLogger("ldm_kit.editing")


def read_mask(path: Path, resolution: int, picture: Path) -> Tensor:
    """Read the mask of what is to be sampled again, bool [R, R], scaled and cropped as the picture.

    A mask without transparency is new where it is white. One with transparency is new where it is opaque, whatever its
    colours; if it is the picture itself with a part erased, where it is transparent. A message says which. A pixel of
    the result is new if any pixel of the mask in it is, so that no line is too thin.

    Raises:
        BadPicture: no picture.
        UserError: a mask that leaves nothing to sample or nothing to keep.
    """
    image, original = decode(path).image, decode(picture).image
    if image.size != original.size:
        sizes = (*image.size, *original.size)
        _log.warning("the mask %s is %d x %d pixels and the picture %d x %d; resized", path.name, *sizes)
    new = _new_pixels(image, original, path)
    scaled = _scaled(new, original.size, resolution)
    if not scaled.any():
        where = "lies outside the centre to which the picture is cropped" if new.any() else "is empty"
        raise UserError(f"{path}: the mask {where}; expected white where the picture is to be sampled again")
    if scaled.all():
        where = "white all over" if new.all() else f"white in every one of {resolution} x {resolution} pixels"
        raise UserError(f"{path}: the mask is {where} and keeps nothing; expected black where the picture stays")
    return torch.from_numpy(scaled)


def _new_pixels(image: Image.Image, picture: Image.Image, path: Path) -> NDArray[np.bool_]:
    """Return which pixels of a decoded mask are new, at its own size."""
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    if alpha.min() == 255:
        return np.asarray(image.convert("L")) >= _HALF
    opaque = alpha >= _HALF
    if _shows(image, opaque, picture):
        _log.warning("the mask %s is the picture with a part erased; what is transparent is sampled again", path.name)
        return ~opaque
    _log.warning("the mask %s has transparency; what is opaque, whatever its colour, is sampled again", path.name)
    return opaque


def _shows(image: Image.Image, opaque: NDArray[np.bool_], picture: Image.Image) -> bool:
    """Return whether the opaque part of an image is that of a picture, and no layer of one colour."""
    if not opaque.any():
        return False
    colours = np.asarray(image.convert("RGB"), dtype=np.float32)[opaque]
    original = np.asarray(picture.convert("RGB").resize(image.size), dtype=np.float32)[opaque]
    varies = float(np.ptp(colours, axis=0).max()) >= _VARIES
    return varies and float(np.abs(colours - original).mean()) < _LIKE


def _scaled(new: NDArray[np.bool_], size: tuple[int, int], resolution: int) -> NDArray[np.bool_]:
    """Return a mask [h, w] of a picture of a size (width, height) as [R, R], cropped to the centre as the picture is.

    A box filter weighs all pixels in a cell alike, so that the cell is above 0 if and only if one of them is new.
    """
    width, height = size
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    x, y = new.shape[1] / width, new.shape[0] / height  # the mask's pixels by the picture's
    box = (left * x, top * y, (left + side) * x, (top + side) * y)
    levels = Image.fromarray(new.astype(np.float32))
    return np.asarray(levels.resize((resolution, resolution), Image.Resampling.BOX, box)) > 0
