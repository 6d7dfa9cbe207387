"""Masks for inpainting, read from picture files, and cropped and scaled as the picture to inpaint is.

A pixel of the scaled mask is to be sampled again ("new") if any of the mask's original pixels in it is.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.image_files import decode

_HALF = 128  # a pixel of this grey or alpha or more is new
_VARIES = 32  # least range, of 255, of a channel in a picture; a painted layer has less
_LIKE = 8  # mean difference, of 255, below which the mask's colours are the picture's
_log = logging.getLogger("ldm_kit.editing")


def read_mask(path: Path, resolution: int | tuple[int, int], picture: Path) -> Tensor:
    """Read the mask of the pixels that are to be sampled again, bool [H, W], scaled and cropped as the picture is.

    A mask without transparency is white where the picture is sampled again. A mask with transparency is opaque there,
    in any colour, unless the mask is the picture itself with a part erased: then this transparent part is sampled
    again. A warning says which of these two cases was found. A pixel of the result is True if any of the mask's pixels
    that fall into it is to be sampled again, so that thin lines are not lost.

    Args:
        path: the mask.
        resolution: pixels along each side of the result; or its height and width.
        picture: the file of the picture that is inpainted.

    Raises:
        BadPicture: `path` or `picture` is no picture.
        UserError: the mask marks no pixel, or every pixel, to be sampled again.
    """
    image, original = decode(path).image, decode(picture).image
    if image.size != original.size:
        sizes = (*image.size, *original.size)
        _log.warning("the mask %s is %d x %d pixels and the picture %d x %d; resized", path.name, *sizes)
    new = _new_pixels(image, original, path)
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    scaled = _scaled(new, original.size, size)
    if not scaled.any():
        where = "lies outside the centre to which the picture is cropped" if new.any() else "is empty"
        raise UserError(f"{path}: the mask {where}; expected white where the picture is to be sampled again")
    if scaled.all():
        where = "white all over" if new.all() else f"white in every one of {size[1]} x {size[0]} pixels"
        raise UserError(f"{path}: the mask is {where} and keeps nothing; expected black where the picture stays")
    return torch.from_numpy(scaled)


def _new_pixels(image: Image.Image, picture: Image.Image, path: Path) -> NDArray[np.bool_]:
    """Return which pixels of a mask are to be sampled again, bool [h, w] at the mask's own size.

    Args:
        image: the decoded mask.
        picture: the decoded picture, to tell whether the mask is that picture with a part erased.
        path: the mask's file, for warnings.
    """
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
    """Return whether the opaque part of an image is a part of `picture`, rather than a layer of one colour.

    `opaque` [h, w] is True at the opaque pixels of `image`. Colours are compared there with `picture`, scaled to [h,
    w].
    """
    if not opaque.any():
        return False
    colours = np.asarray(image.convert("RGB"), dtype=np.float32)[opaque]
    original = np.asarray(picture.convert("RGB").resize(image.size), dtype=np.float32)[opaque]
    varies = float(np.ptp(colours, axis=0).max()) >= _VARIES
    return varies and float(np.abs(colours - original).mean()) < _LIKE


def _scaled(new: NDArray[np.bool_], size: tuple[int, int], result: tuple[int, int]) -> NDArray[np.bool_]:
    """Crop a mask to the same centre as the picture to inpaint, and scale it.

    A pixel of the result is True if any of the mask's pixels that fall into it is True.

    Args:
        new: the mask, bool [h, w].
        size: the picture's width and height, which may differ from the mask's.
        result: height and width of the result.
    """
    (width, height), (rows, columns) = size, result
    across = min(width, height * columns / rows)  # of the picture, what is left after cropping
    down = min(height, width * rows / columns)
    left, top = (width - across) / 2, (height - down) / 2
    x, y = new.shape[1] / width, new.shape[0] / height  # the mask's pixels by the picture's
    box = (left * x, top * y, (left + across) * x, (top + down) * y)
    levels = Image.fromarray(new.astype(np.float32))
    return np.asarray(levels.resize((columns, rows), Image.Resampling.BOX, box)) > 0
