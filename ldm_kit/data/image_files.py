"""One robust reader of image files: header checked before decoding, every mode brought to uint8, square."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from pydantic import AfterValidator
from torch import Tensor

from ldm_kit.config import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # no formats that start other programs (EPS)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
PIXEL_LIMIT = 64_000_000
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error, zlib.error)


class Encoded(NamedTuple):
    """A picture file's contents that lie in something larger (an archive, a table), and what to call it."""

    name: str
    contents: bytes

    def __str__(self) -> str:
        return self.name


class BadPicture(UserError):
    """A file that cannot be used as a picture, and why; `reason` is the sentence without the file's path."""

    def __init__(self, path: Path | Encoded | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def colour(text: str) -> tuple[int, int, int]:
    """A colour by name ("white") or "#rrggbb" -> (red, green, blue) in 0..255.

    Raises:
        UserError: a text that names no colour.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError:
        raise UserError(f"unknown colour {text!r}; expected a name such as white or #rrggbb") from None
    return red, green, blue


def _known(text: str) -> str:
    try:
        colour(text)
    except UserError as error:
        raise ValueError(str(error)) from None  # what pydantic listens to
    return text


Colour = Annotated[str, AfterValidator(_known)]  # the type of a colour in a config


def load_image(
    path: Path | Encoded | str,
    resolution: int,
    channels: int = 3,
    background: str = "white",
    pixel_limit: int = PIXEL_LIMIT,
) -> Tensor:
    """Read an image file, or the contents of one, as uint8 [channels, resolution, resolution].

    Turned by its EXIF orientation, scaled (Lanczos, antialiased) so that the shorter side fits, cropped to the centre;
    transparency is laid on `background` unless channels is 4; of an animation the first frame counts.

    Raises:
        BadPicture: no such file, not an image, truncated, or a header that promises more than `pixel_limit` pixels.
        UserError: an unknown background colour, or channels other than 1, 3 or 4.
    """
    if channels not in _MODES:
        raise UserError(f"channels is {channels}; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
    ground = colour(background)
    image = _decode(path if isinstance(path, Encoded) else Path(path), pixel_limit)
    try:
        flat = _to_mode(image, channels, ground)
        square = ImageOps.fit(flat, (resolution, resolution), Image.Resampling.LANCZOS)
    except _BROKEN as error:
        raise BadPicture(path, f"cannot be converted ({_words(error)})") from None
    pixels = np.array(square, dtype=np.uint8).reshape(resolution, resolution, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def check_header(path: Path | Encoded, pixel_limit: int) -> None:
    """Raise BadPicture unless the header reads as an image of at most `pixel_limit` pixels; nothing is decoded."""
    with _reading(path, pixel_limit):
        pass


def _decode(path: Path | Encoded, pixel_limit: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF, odd palettes: handled or harmless
        with _reading(path, pixel_limit) as image:
            try:
                image.load()
                return ImageOps.exif_transpose(image)
            except _BROKEN as error:
                raise BadPicture(path, f"broken or truncated image ({_words(error)})") from None


def _reading(path: Path | Encoded, pixel_limit: int) -> Image.Image:
    """The opened image, its header checked; the caller closes it."""
    if isinstance(path, Path):
        _refuse_irregular(path)
    image = _open(path, pixel_limit)
    width, height = image.size
    if width * height > pixel_limit:
        image.close()
        raise BadPicture(path, f"{_pixels(width, height)}, over the limit of {pixel_limit:,}")
    return image


def _refuse_irregular(path: Path) -> None:
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise BadPicture(path, "not a regular file" if path.exists() else "no such file")
    except OSError as error:
        raise BadPicture(path, f"cannot be reached ({error.strerror})") from None


def _open(path: Path | Encoded, pixel_limit: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path if isinstance(path, Path) else io.BytesIO(path.contents), formats=FORMATS)
        except _BOMBS:
            most = f"{min(pixel_limit, Image.MAX_IMAGE_PIXELS or pixel_limit):,}"
            raise BadPicture(path, f"more pixels than the limit of {most} (a decompression bomb?)") from None
        except Image.UnidentifiedImageError:
            size = os.path.getsize(path) if isinstance(path, Path) else len(path.contents)
            kind = f"not an image of a known kind ({', '.join(FORMATS)})" if size else "an empty file"
            raise BadPicture(path, kind) from None
        except _BROKEN as error:
            raise BadPicture(path, f"cannot be opened ({_words(error)})") from None


def _to_mode(image: Image.Image, channels: int, ground: tuple[int, int, int]) -> Image.Image:
    """Any Pillow mode -> L, RGB or RGBA, 8 bits a channel."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB").convert(_MODES[channels])
    layer = image.convert("RGBA")
    if channels == 4:
        return layer
    under = Image.new("RGBA", layer.size, (*ground, 255))
    under.alpha_composite(layer)
    return under.convert("RGB").convert(_MODES[channels])


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16 and I) -> L, scaled by 255 / 65535."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels of more than 16 bits have no agreed scale; save the picture with 8 or 16 bits")
    return Image.fromarray(np.round(values.astype(np.float32) / 257).astype(np.uint8))


def _pixels(width: int, height: int) -> str:
    return f"{width} x {height} = {width * height:,} pixels"


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
