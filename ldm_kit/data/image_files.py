"""Reader of image files, for pictures and masks; the file's EXIF orientation and colour profile are applied.

A file's header is checked before pixels are decoded; pictures of any Pillow mode become square uint8 tensors.
"""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from PIL import Image, ImageColor, ImageOps
from pydantic import AfterValidator
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.colour_profiles import Profile, conversion_of
from ldm_kit.data.image_kinds import FORMATS, formats_of
from ldm_kit.data.pixels import MODES, alpha_of, eight_bits, fitted, plain

PIXEL_LIMIT = 64_000_000  # default for the most pixels that the header of an image file may promise
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag of the orientation, and its values that swap width and height
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error, zlib.error)


class Encoded(NamedTuple):
    """The bytes of an image file that lies in an archive or a table, with the picture's name for messages."""

    name: str
    contents: bytes

    def __str__(self) -> str:
        return self.name


class Decoded(NamedTuple):
    """A decoded image in sRGB, turned by its EXIF orientation, with the file's image mode and colour profile."""

    image: Image.Image  # of Pillow's mode L, LA, RGB or RGBA
    mode: str  # Pillow's mode of the image in the file
    profile: Profile | None  # None: no profile, or one equivalent to sRGB


class BadPicture(UserError):
    """Error that a file cannot be used as a picture; `reason` is the message without the file's path."""

    def __init__(self, path: Path | Encoded | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def colour(text: str) -> tuple[int, int, int]:
    """Return the (red, green, blue) values, 0 to 255, of a colour given by name ("white") or as "#rrggbb".

    Raises:
        UserError: the text names no colour.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError:
        raise UserError(f"unknown colour {text!r}; expected a name such as white or #rrggbb") from None
    return red, green, blue


def _check_colour(text: str) -> str:
    try:
        colour(text)
    except UserError as error:
        raise ValueError(str(error)) from None  # pydantic reports ValueErrors
    return text


Colour = Annotated[str, AfterValidator(_check_colour)]  # the type of a colour in a config


def load_image(
    path: Path | Encoded | str,
    resolution: int | tuple[int, int],
    channels: int = 3,
    background: str = "white",
    pixel_limit: int = PIXEL_LIMIT,
    *,
    alpha: bool = False,
) -> Tensor:
    """Load an image file, or the bytes of one, as a picture of a given size.

    The image is turned by its EXIF orientation, converted from its colour profile to sRGB, scaled (Lanczos,
    antialiased) so that it just covers the size, and cropped to the centre. Of an animation, the first
    frame is used.

    Args:
        path: the file, or its bytes.
        resolution: pixels along each side of a square picture; or height and width.
        channels: 1 grey, 3 RGB, 4 RGBA.
        background: colour under transparent pixels (a name or #rrggbb), unless channels is 4.
        pixel_limit: most pixels that the header may promise; checked before anything is decoded.
        alpha: whether alpha follows the channels of the picture that is laid over the background.

    Returns:
        uint8 [channels, height, width], or [channels + 1, height, width] with alpha.

    Raises:
        BadPicture: the file does not exist, is no image, is truncated, or has more than `pixel_limit` pixels.
        UserError: `background` is no colour, or `channels` is not 1, 3 or 4.
    """
    if channels not in MODES:
        raise UserError(f"channels is {channels}; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
    rgb = colour(background)
    path = path if isinstance(path, Encoded) else Path(path)
    image = decode(path, pixel_limit).image
    picture = fitted(image, resolution, channels, rgb)
    return torch.cat([picture, alpha_of(image, resolution)]) if alpha else picture


def decode(path: Path | Encoded, pixel_limit: int = PIXEL_LIMIT) -> Decoded:
    """Decode an image file, or the bytes of one, to 8 bits per channel in sRGB, turned by its EXIF orientation.

    Raises:
        BadPicture: the file does not exist, is no image, is truncated, or has more than `pixel_limit` pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF, odd palettes: handled or harmless
        with _open_checked(path, pixel_limit) as file:
            mode, colours = file.mode, conversion_of(file)
            try:
                file.load()
                image = ImageOps.exif_transpose(file)
            except _BROKEN as error:
                raise BadPicture(path, f"broken or truncated image ({_short_text(error)})") from None
        try:
            return Decoded(plain(colours.apply(eight_bits(image))), mode, colours.profile)
        except _BROKEN as error:
            raise BadPicture(path, f"cannot be converted ({_short_text(error)})") from None


def check_header(path: Path | Encoded, pixel_limit: int) -> Profile | None:
    """Check the header of an image file, or of the bytes of one, without decoding pixels.

    Returns:
        The image's colour profile; None if it has none, or one equivalent to sRGB.

    Raises:
        BadPicture: the file does not exist, is no image, or has more than `pixel_limit` pixels.
    """
    with _open_checked(path, pixel_limit) as image:
        return conversion_of(image).profile


def image_size(path: Path | Encoded, pixel_limit: int) -> tuple[int, int]:
    """Return height and width of an image, turned by its EXIF orientation; raises BadPicture if it cannot be read."""
    with _open_checked(path, pixel_limit) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
        except _BROKEN as error:
            raise BadPicture(path, f"broken or truncated image ({_short_text(error)})") from None
    return (width, height) if turned else (height, width)


def _open_checked(path: Path | Encoded, pixel_limit: int) -> Image.Image:
    """Open an image file, and check that it has at most `pixel_limit` pixels; the caller closes the image."""
    if isinstance(path, Path):
        _check_regular(path)
    image = _open(path, pixel_limit)
    width, height = image.size
    if width * height > pixel_limit:
        image.close()
        raise BadPicture(path, f"{_pixels(width, height)}, over the limit of {pixel_limit:,}")
    return image


def _check_regular(path: Path) -> None:
    try:
        if not path.is_file():  # opening a pipe would block
            raise BadPicture(path, "not a regular file" if path.exists() else "no such file")
    except OSError as error:
        raise BadPicture(path, f"cannot be reached ({error.strerror})") from None


def _open(path: Path | Encoded, pixel_limit: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            file = path if isinstance(path, Path) else io.BytesIO(path.contents)
            return Image.open(file, formats=formats_of(str(path)))
        except _BOMBS:
            limit = f"{min(pixel_limit, Image.MAX_IMAGE_PIXELS or pixel_limit):,}"
            raise BadPicture(path, f"more pixels than the limit of {limit} (a decompression bomb?)") from None
        except Image.UnidentifiedImageError:
            size = os.path.getsize(path) if isinstance(path, Path) else len(path.contents)
            kind = f"not an image of a known kind ({', '.join(FORMATS)})" if size else "an empty file"
            raise BadPicture(path, kind) from None
        except _BROKEN as error:
            raise BadPicture(path, f"cannot be opened ({_short_text(error)})") from None


def _pixels(width: int, height: int) -> str:
    return f"{width} x {height} = {width * height:,} pixels"


def _short_text(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
