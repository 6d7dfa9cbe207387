"""Pictures in and out: the user's file and mask brought to a model's size, sheets of results, and moving pictures."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.image_files import BadPicture, load_image
from ldm_kit.viz.grid import grid
from ldm_kit.viz.png import file_name, save_png, write_atomic

MOST_ELONGATED = 4.0  # longer side by shorter, beyond which the centre crop would show a detail only
SHORTEST = 20  # milliseconds of a frame that viewers still honour
_CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
_BANDS = {"1": 1, "L": 1, "LA": 4, "RGB": 3, "RGBA": 4}
_log = logging.getLogger("ldm_kit.editing")


def read_picture(path: Path, resolution: int, channels: int) -> Tensor:
    """The user's picture as the model sees pictures, uint8 [C, R, R]; says in the log what had to be changed.

    Raises:
        BadPicture: no picture, or one of which a centre crop would leave out most.
    """
    found = load_image(path, resolution, channels)
    size, mode = _header(path)
    width, height = size
    if max(size) > MOST_ELONGATED * min(size):
        raise BadPicture(path, f"{width} x {height} pixels are too long for a square model; crop it first")
    if size != (resolution, resolution):
        cropped = "" if width == height else " and cropped to its centre"
        _log.warning("%s is %d x %d pixels; scaled%s to %d x %d", path.name, *size, cropped, resolution, resolution)
    if _BANDS.get(mode) != channels:
        _log.warning("%s has the mode %s; turned into %s, which the model knows", path.name, mode, _CHANNELS[channels])
    return found


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Size, upright, and mode of a picture that could be read."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5
        return ((height, width) if turned else (width, height)), image.mode


def read_mask(path: Path, resolution: int, picture: Path) -> Tensor:
    """What is to be painted anew, bool [R, R]: white in the file, scaled and cropped as the picture is.

    Raises:
        BadPicture: no picture.
        UserError: a mask that leaves nothing to paint or nothing to keep.
    """
    load_image(path, resolution, 1)  # says what is wrong with the file
    size, wanted = _header(path)[0], _header(picture)[0]
    with Image.open(path) as image:
        flat = ImageOps.exif_transpose(image).convert("LA").getchannel("L")
    if size != wanted:
        _log.warning("the mask %s is %d x %d pixels and the picture %d x %d; resized", path.name, *size, *wanted)
        flat = flat.resize(wanted, Image.Resampling.NEAREST)
    square = ImageOps.fit(flat, (resolution, resolution), Image.Resampling.NEAREST)
    mask = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(resolution, resolution) >= 128
    if not bool(mask.any()):
        raise UserError(f"{path}: the mask is empty; expected white where the picture is to be painted anew")
    if bool(mask.all()):
        raise UserError(f"{path}: the mask is white all over and keeps nothing; expected black where the picture stays")
    return mask


def save_sheet(
    pictures: Tensor,
    captions: Sequence[str],
    out: Path,
    *,
    columns: int | None = None,
    seeds: Sequence[int] | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Write pictures uint8 [N, C, R, R], each to its own file, and all of them on sheet.png, whose path it gives.

    Args:
        pictures: what to write.
        captions: one each.
        out: a folder, made if need be.
        columns: of the sheet; one row if left out.
        seeds: one each, for the names.
        about: text for all PNGs; None: none.
    """
    out.mkdir(parents=True, exist_ok=True)
    for i, caption in enumerate(captions):
        more = None if about is None else {"picture": caption, **about}
        place = out / file_name(0 if seeds is None else seeds[i], i, caption)
        save_png(grid(pictures[[i]], 1, padding=0), place, more)
    scale = max(1, 96 // pictures.shape[-1])
    save_png(grid(pictures, columns or len(pictures), scale, list(captions)), out / "sheet.png", about)
    return out / "sheet.png"


def save_animation(frames: Tensor, path: Path, duration: int = 80, *, back: bool = True) -> int:
    """Write frames uint8 [N, C, R, R] as an endless GIF (.gif) or APNG (.png, .apng); gives how many there are.

    Args:
        frames: in order.
        path: its ending decides the format.
        duration: of a frame in milliseconds; a GIF counts in tens.
        back: go back to the first frame, each frame but the ends shown twice.

    Raises:
        UserError: another ending, or a duration that viewers do not honour.
    """
    if (kind := {".gif": "GIF", ".png": "PNG", ".apng": "PNG"}.get(path.suffix.lower())) is None:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; expected .gif, .png or .apng")
    if duration < SHORTEST:
        raise UserError(f"--duration is {duration}; expected {SHORTEST} milliseconds or more")
    scale = max(1, 128 // frames.shape[-1])
    images = [grid(frame[None], 1, scale, padding=0) for frame in frames]
    images += images[-2:0:-1] if back else []
    options: dict[str, Any] = {"optimize": False, "disposal": 1} if kind == "GIF" else {"default_image": False}
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=duration, loop=0, **options)
    write_atomic(path, buffer.getvalue())
    return len(images)
