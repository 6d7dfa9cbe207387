"""Reader of files of values: arrays (.npy), TIFF and PNG, with any channels, 8 to 64 bits, whole numbers or floats.

Values are taken as they are in the file: no colour profile, gamma or orientation is applied. They are scaled and
cropped in float by the same rule, and with the same filter, as other pictures (`pixels.fitted`).
"""

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, ImageOps
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data import png16, tiff
from ldm_kit.data.image_files import PIXEL_LIMIT, BadPicture
from ldm_kit.data.value_range import ValueRange, as_levels

ARRAYS, TIFF, PNG = (".npy",), (".tif", ".tiff"), (".png",)
VALUE_SUFFIXES = (*ARRAYS, *TIFF, *PNG)
Array = np.ndarray[Any, Any]


def has_values(name: str) -> bool:
    """Return whether a file's name has the suffix of a file of values: .npy, .tif, .tiff or .png, in any case."""
    return PurePath(name).suffix.lower() in VALUE_SUFFIXES


def load_levels(
    path: Path, resolution: int, channels: int, values: ValueRange, pixel_limit: int = PIXEL_LIMIT
) -> Tensor:
    """Load a file of values as a square picture of 65536 levels between the values of a range.

    Args:
        path: the file.
        resolution: R, pixels along each side.
        channels: C, channels that the file must have.
        values: what the lowest and the highest level stand for; values outside are clipped.
        pixel_limit: most pixels that the header may promise.

    Returns:
        uint16 [C, R, R].

    Raises:
        BadPicture: the file cannot be read, has other channels or too many pixels, or holds NaN or infinity.
    """
    shares = _fitted(values.shares(read_values(path, channels, pixel_limit)), resolution)
    return torch.from_numpy(as_levels(shares))


def load_values(path: Path, resolution: int, channels: int, pixel_limit: int = PIXEL_LIMIT) -> Array:
    """Load a file of values as a square picture, float32 [C, R, R] in the units of the data; see `load_levels`."""
    return _fitted(read_values(path, channels, pixel_limit), resolution)


def _fitted(values: Array, resolution: int) -> Array:
    """Scale (Lanczos, antialiased) values [C, H, W] so that they cover a square, and crop them: float32 [C, R, R]."""
    planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32), "F") for plane in values]
    size = resolution, resolution
    return np.stack([np.asarray(ImageOps.fit(plane, size, Image.Resampling.LANCZOS)) for plane in planes])


def read_values(path: Path, channels: int, pixel_limit: int = PIXEL_LIMIT) -> Array:
    """Read the values in a file, [C, H, W] of the file's own type.

    Arrays (.npy) are [H, W], or three-dimensional with C `channels` first or last (first, if both could be). The
    channels of a TIFF are its pages, one after the other, each with its samples.

    Raises:
        BadPicture: see `load_levels`.
    """
    with _opened(path, channels, pixel_limit) as source:
        try:
            values = source.read()
        except (BadPicture, UserError):
            raise
        except Exception as error:  # of four libraries, each with errors of its own
            raise BadPicture(path, f"broken or truncated ({_short(error)})") from None
    if len(values) != channels:
        raise BadPicture(path, f"{_counted(len(values))}; expected {channels} (data.channels)")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadPicture(path, "holds NaN or infinity; expected finite values")
    return values


def check_values_header(path: Path, channels: int, pixel_limit: int) -> None:
    """Check channels and size of a file of values by its header alone; raises BadPicture if it cannot be used."""
    with _opened(path, channels, pixel_limit):
        pass


class _Source:
    """An opened file of values: channels, height and width, and a function that reads all values."""

    def __init__(self, shape: tuple[int, int, int], read: Any) -> None:
        self.shape, self.read = shape, read


@contextlib.contextmanager
def _opened(path: Path, channels: int, pixel_limit: int) -> Iterator[_Source]:
    suffix = path.suffix.lower()
    opener = {**dict.fromkeys(ARRAYS, _array), **dict.fromkeys(TIFF, _tiff), **dict.fromkeys(PNG, _png)}.get(suffix)
    if opener is None:
        raise BadPicture(
            path, f"with data.range files are {', '.join(VALUE_SUFFIXES)}, and this one is {suffix or 'another'}"
        )
    try:
        if not path.is_file():
            raise BadPicture(path, "not a regular file" if path.exists() else "no such file")
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise BadPicture(path, "an empty file")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with contextlib.closing(data):
            source = opener(path, data, channels)
            _check_shape(path, source.shape, channels, pixel_limit)
            yield source
    except (BadPicture, UserError):
        raise
    except Exception as error:  # as above
        raise BadPicture(path, f"cannot be read ({_short(error)})") from None


def _check_shape(path: Path, shape: tuple[int, int, int], channels: int, pixel_limit: int) -> None:
    count, height, width = shape
    if count != channels:
        raise BadPicture(path, f"has {_counted(count)}; expected {channels} (data.channels)")
    if min(height, width) < 1 or height * width > pixel_limit:
        raise BadPicture(path, f"{width} x {height} pixels; expected 1 to {pixel_limit:,}")


def _array(path: Path, data: Any, channels: int) -> _Source:
    version = npy.read_magic(data)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format; expected 1.0 or 2.0")
    header = npy.read_array_header_1_0(data) if version == (1, 0) else npy.read_array_header_2_0(data)
    shape, fortran, dtype = header
    if dtype.kind not in "uif":
        raise ValueError(f"an array of type {dtype}; expected whole numbers or floats")
    if len(shape) not in (2, 3):
        raise ValueError(f"an array {[*shape]}; expected [H, W], or channels first or last")
    last = len(shape) == 3 and shape[0] != channels and shape[2] == channels
    start = data.tell()

    def read() -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        flat = np.frombuffer(data, dtype, count, start).copy()
        values = flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
        values = values[None] if values.ndim == 2 else values
        return np.moveaxis(values, 2, 0) if last else values

    whole = (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2]) if last else shape
    return _Source((whole[0], whole[1], whole[2]), read)


def _tiff(path: Path, data: Any, channels: int) -> _Source:
    pages = tiff.open_pages(data)
    samples, height, width = tiff.size_of(pages[0])
    return _Source((samples * len(pages), height, width), lambda: tiff.read_values(pages))


def _png(path: Path, data: Any, channels: int) -> _Source:
    return _Source(png16.read_header(data).shape, lambda: png16.read_values(data))


def _counted(count: int) -> str:
    return f"{count} {'channel' if count == 1 else 'channels'}"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
