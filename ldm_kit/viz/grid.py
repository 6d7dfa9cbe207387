"""Grids of pictures, with captions; the files and the curves they lie beside have rooms of their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm_kit.viz.curves import curves as curves
from ldm_kit.viz.png import file_name as file_name
from ldm_kit.viz.png import read_metadata as read_metadata
from ldm_kit.viz.png import save_png as save_png

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TEXT_SIZE, _LINE_HEIGHT, _LINES = 11, 14, 4
_CAPTIONED_WIDTH = 96  # pixels a caption needs to be of use; narrower pictures get wider cells


def grid(
    pictures: Tensor, columns: int, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2
) -> Image.Image:
    """Lay pictures, uint8 [N, C, H, W] with C = 1, 3 or 4, in rows on white, each caption under its picture.

    Pixels are repeated `scale` times, never smoothed; alpha is laid over white. Captions wrap to four lines at most
    and widen the cells of small pictures to 96 pixels.

    Raises:
        ValueError: no pictures, not uint8 [N, 1 | 3 | 4, H, W], fewer than 1 column, or not one caption a picture.
    """
    return _lay(_captioned(pictures, scale, captions), columns, padding)


def pairs_grid(
    originals: Tensor,
    reconstructions: Tensor,
    columns: int = 8,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    padding: int = 2,
) -> Image.Image:
    """Rows of originals, each followed by the row of their reconstructions, which carry the captions.

    Raises:
        ValueError: the two differ in shape, or as in `grid`.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(f"got shapes {[*originals.shape]} and {[*reconstructions.shape]}; expected equal ones")
    above, below = _captioned(originals, scale, None), _captioned(reconstructions, scale, captions)
    cells: list[_Cell] = []
    for start in range(0, len(above), max(columns, 1)):
        for row in (above[start : start + columns], below[start : start + columns]):
            cells += [*row, *[(None, "")] * (min(columns, len(above)) - len(row))]
    return _lay(cells, min(columns, len(above)), padding)


def strip(pictures: Tensor, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2) -> Image.Image:
    """All pictures, uint8 [N, C, H, W], side by side in one row."""
    return grid(pictures, max(len(pictures), 1), scale, captions, padding)


_Cell = tuple[Image.Image | None, str]


def _captioned(pictures: Tensor, scale: int, captions: Sequence[str] | None) -> list[_Cell]:
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"got {len(captions)} captions for {len(pictures)} pictures; expected one each")
    return list(zip(_images(pictures, scale), captions or [""] * len(pictures), strict=True))


def _images(pictures: Tensor, scale: int) -> list[Image.Image]:
    """uint8 [N, C, H, W] -> RGB images, enlarged."""
    shape, kind = [*pictures.shape], str(pictures.dtype)
    if len(shape) != 4 or not len(pictures) or shape[1] not in _MODES or kind != "torch.uint8":
        raise ValueError(f"got {kind} {shape}; expected at least one picture, uint8 [N, 1 | 3 | 4, H, W]")
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    arrays = pictures.detach().cpu().permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    return [_on_white(Image.fromarray(a[..., 0] if a.shape[-1] == 1 else np.ascontiguousarray(a))) for a in arrays]


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _lay(cells: Sequence[_Cell], columns: int, padding: int) -> Image.Image:
    """Draw cells row by row; a row is as high as its pictures and its longest caption."""
    if columns < 1 or padding < 0:
        raise ValueError(f"expected at least 1 column and padding of 0 or more, got {columns} and {padding}")
    columns = min(columns, len(cells))
    wide, high = next(image.size for image, _ in cells if image is not None)
    cell = max(wide, _CAPTIONED_WIDTH) if any(text for _, text in cells) else wide
    wrapped = [(image, _wrap(text, cell - 4)) for image, text in cells]
    rows = [wrapped[start : start + columns] for start in range(0, len(wrapped), columns)]
    heights = [high + _LINE_HEIGHT * max(len(lines) for _, lines in row) for row in rows]
    size = (columns * (cell + padding) + padding, sum(heights) + padding * (len(rows) + 1))
    canvas, top = Image.new("RGB", size, "white"), padding
    for row, height in zip(rows, heights, strict=True):
        for column, (image, lines) in enumerate(row):
            _draw(canvas, image, lines, (padding + column * (cell + padding), top), cell)
        top += height + padding
    return canvas


def _draw(canvas: Image.Image, image: Image.Image | None, lines: list[str], corner: tuple[int, int], wide: int) -> None:
    if image is None:
        return
    left, top = corner
    canvas.paste(image, (left + (wide - image.width) // 2, top))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT_SIZE)
    for number, line in enumerate(lines):
        place = (left + wide / 2, top + image.height + number * _LINE_HEIGHT + 1)
        pen.text(place, line, fill="black", font=font, anchor="ma")


def _wrap(text: str, width: int) -> list[str]:
    """Break a caption into at most four lines of `width` pixels; what is left out shows as an ellipsis."""
    font = ImageFont.load_default(_TEXT_SIZE)
    words = "".join(c if c.isprintable() else " " for c in text[:300]).split()
    lines: list[str] = []
    while words and len(lines) < _LINES:
        fits = next((n for n in range(len(words), 0, -1) if font.getlength(" ".join(words[:n])) <= width), 0)
        lines.append(" ".join(words[:fits]) if fits else _cut(words[0], width, font))
        words = words[fits:] if fits else [words[0][len(lines[-1]) :], *words[1:]]
    if words:
        lines[-1] = _cut(lines[-1], width - font.getlength("..."), font).rstrip() + "..."
    return lines


def _cut(text: str, width: float, font: Any) -> str:
    """The longest beginning of a text that fits, of one character at least."""
    return text[: max(1, next(n for n in range(len(text), -1, -1) if font.getlength(text[:n]) <= width or not n))]
