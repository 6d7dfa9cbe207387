"""Reading and writing of pictures: a user's picture at a model's size, sheets of results, and animations."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.colour_profiles import describe
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.image_files import BadPicture, decode
from ldm_kit.data.pixels import fitted
from ldm_kit.editing.context import EditContext, EditResult
from ldm_kit.editing.options import ANIMATION_FORMATS, MIN_DURATION
from ldm_kit.models.protocol import Semantic
from ldm_kit.viz.grid import columns_for, enlargement, grid, to_image
from ldm_kit.viz.png import file_name, next_index, save_png, unused_path, write_atomic

MAX_ASPECT_RATIO = 4.0  # longer side / shorter side; above it, the centre crop would show only a detail
_MODE_NAMES = {1: "grey", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"1": 1, "L": 1, "LA": 4, "RGB": 3, "RGBA": 4}
_log = logging.getLogger("ldm_kit.editing")


def read_picture(path: Path, resolution: int | tuple[int, int], channels: int) -> Tensor:
    """Read the user's picture in the file `path` as uint8 [C, R, R], with C = `channels` and R = `resolution`.

    A `resolution` of two numbers is height and width, and the picture uint8 [C, H, W].

    Scaling, cropping, and changes of colour profile or colour mode (grey, RGB, RGBA) are logged as warnings.

    Raises:
        BadPicture: the file is no picture, or the picture is so long that a centre crop would leave most of it out.
    """
    image, mode, profile = decode(path)
    rows, columns = (resolution, resolution) if isinstance(resolution, int) else resolution
    width, height = image.size
    shares = width * rows, height * columns  # equal where the aspect ratios are
    if max(shares) > MAX_ASPECT_RATIO * min(shares):
        shape = "a square model" if rows == columns else f"{columns} x {rows}"
        raise BadPicture(path, f"{width} x {height} pixels are too long for {shape}; crop it first")
    if image.size != (columns, rows):
        cropped = "" if shares[0] == shares[1] else " and cropped to its centre"
        _log.warning("%s is %d x %d pixels; scaled%s to %d x %d", path.name, width, height, cropped, columns, rows)
    if profile is not None:
        _log.warning("%s: %s", path.name, describe(profile))
    if _CHANNELS.get(mode) != channels:
        name = _MODE_NAMES[channels]
        _log.warning("%s has the mode %s; turned into %s, which the model knows", path.name, mode, name)
    return fitted(image, resolution, channels)


def read_model_picture(model: Semantic, path: Path) -> Tensor:
    """Read the user's picture in the file `path` at the size of a model's pictures: uint8 [1, C, R, R].

    Raises:
        UserError: the file is no picture, or the picture is so long that a centre crop would leave most of it out.
    """
    return read_picture(path, model.resolution, model.channels)[None]


def folder_config(model: Semantic, path: Path) -> FolderConfig:
    """Return the data config that loads the pictures in the folder `path` with a model's resolution and channels."""
    return FolderConfig.model_validate({"path": path, "resolution": model.resolution, "channels": model.channels})


def save_sheet(
    pictures: Tensor,
    captions: Sequence[str],
    out: Path,
    *,
    columns: int | None = None,
    seeds: Sequence[int] | None = None,
    png_text: Mapping[str, str] | None = None,
) -> Path:
    """Write pictures uint8 [N, C, R, R], each to its own file, and all of them to sheet.png; return the sheet's path.

    Nothing is overwritten: if the folder holds pictures, the new files' numbers continue from theirs, and the sheet is
    sheet-2.png.

    Args:
        pictures: the N pictures.
        captions: one for each picture; they stand on the sheet and in the file names.
        out: a folder, which is made if it does not exist.
        columns: if 2 to 16, the sheet has this number of columns, or the smallest multiple of it with which there are
            at most twice as many rows as columns. Other numbers: about as many columns as rows. None: one row of up to
            16 pictures; for more pictures, about as many columns as rows.
        seeds: one for each picture, for the file names; None: 0.
        png_text: metadata of all PNGs; None: no metadata.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = next_index(out)
    for i, caption in enumerate(captions):
        text = None if png_text is None else {"picture": caption, **png_text}
        path = out / file_name(0 if seeds is None else seeds[i], first + i, caption)
        save_png(to_image(pictures[i]), path, text)
    columns, scale = columns_for(len(pictures), columns or len(pictures)), enlargement(pictures.shape[-1])
    sheet = unused_path(out / "sheet.png")
    save_png(grid(pictures, columns, scale, list(captions)), sheet, png_text)
    return sheet


def save_result(
    context: EditContext,
    pictures: Tensor,
    captions: Sequence[str],
    *,
    columns: int | None = None,
    seeds: Sequence[int] | None = None,
    **settings: Any,
) -> EditResult:
    """Write pictures uint8 [N, C, R, R] and a sheet of them all; return their number and the sheet's path.

    Args:
        context: the output folder, and whether PNGs record metadata.
        pictures: the N pictures.
        captions: one for each picture; they stand on the sheet and in the file names.
        columns: number of columns of the sheet, see `save_sheet`.
        seeds: one for each picture, for the file names; None: 0.
        settings: settings of the edit by name, for the PNGs' metadata; JSON values.
    """
    png_text = context.png_text(**settings)
    sheet = save_sheet(pictures, captions, context.out_folder, columns=columns, seeds=seeds, png_text=png_text)
    return EditResult(len(pictures), sheet)


def save_animation(frames: Tensor, path: Path, duration: int = 80, *, back: bool = True) -> int:
    """Write frames uint8 [N, C, R, R] as an endless GIF (.gif) or APNG (.png, .apng); return the number written.

    Args:
        frames: the N frames in order.
        path: the file to write; its ending decides the format.
        duration: milliseconds for which each frame is shown; a GIF stores them in units of 10.
        back: append the frames in reverse order, without repeating the first and the last.

    Raises:
        UserError: `path` has another ending, or `duration` is below `MIN_DURATION` (20), which viewers do not honour.
    """
    if (kind := ANIMATION_FORMATS.get(path.suffix.lower())) is None:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; expected .gif, .png or .apng")
    if duration < MIN_DURATION:
        raise UserError(f"--duration is {duration}; expected {MIN_DURATION} milliseconds or more")
    scale = max(1, 128 // frames.shape[-1])
    images = [to_image(frame, scale) for frame in frames]
    images += images[-2:0:-1] if back else []
    disposal = 2 if images[0].mode == "RGBA" else 1  # 2: no frame shows through the transparency of the next
    options: dict[str, Any] = {"optimize": False, "disposal": disposal} if kind == "GIF" else {"default_image": False}
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=duration, loop=0, **options)
    write_atomic(path, buffer.getvalue())
    return len(images)
