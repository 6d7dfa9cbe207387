"""Grids of pictures with captions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_TEXT_SIZE, _LINE_HEIGHT, _LINES = 11, 14, 4
_CAPTIONED_WIDTH = 96  # least width of a cell with a caption, in pixels


def grid(
    pictures: Tensor, columns: int, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2
) -> Image.Image:
    """Lay pictures out in rows on white, each with its caption below.

    Captions wrap to at most four lines and widen the cells of small pictures to 96 pixels.

    Args:
        pictures: uint8 [N, C, H, W] with C = 1 (grey), 3 (RGB) or 4 (RGBA, laid over white).
        columns: pictures in a row.
        scale: how often each pixel is repeated, in both directions; pictures are never smoothed.
        captions: one for each picture; None: none.
        padding: pixels between cells.

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
    *,
    padding: int = 2,
) -> Image.Image:
    """Lay out rows of originals, each followed by the row of their reconstructions with the captions.

    Args:
        originals: uint8 [N, C, H, W], as for `grid`.
        reconstructions: of the same shape.
        columns: pictures in a row.
        scale: how often each pixel is repeated.
        captions: one for each pair; None: none.
        padding: pixels between cells.

    Raises:
        ValueError: the two differ in shape, or as for `grid`.
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
    """Lay out all pictures, uint8 [N, C, H, W], in one row; arguments as for `grid`."""
    return grid(pictures, max(len(pictures), 1), scale, captions, padding)


_Cell = tuple[Image.Image | None, str]


def _captioned(pictures: Tensor, scale: int, captions: Sequence[str] | None) -> list[_Cell]:
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"got {len(captions)} captions for {len(pictures)} pictures; expected one each")
    return list(zip(_images(pictures, scale), captions or [""] * len(pictures), strict=True))


def _images(pictures: Tensor, scale: int) -> list[Image.Image]:
    """Convert pictures, uint8 [N, C, H, W], to enlarged RGB images."""
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
    """Lay out cells row by row; the height of a row is that of its pictures and its longest caption."""
    if columns < 1 or padding < 0:
        raise ValueError(f"expected at least 1 column and padding of 0 or more, got {columns} and {padding}")
    columns = min(columns, len(cells))
    width, height = next(image.size for image, _ in cells if image is not None)
    cell = max(width, _CAPTIONED_WIDTH) if any(text for _, text in cells) else width
    wrapped = [(image, _wrap(text, cell - 4)) for image, text in cells]
    rows = [wrapped[start : start + columns] for start in range(0, len(wrapped), columns)]
    heights = [height + _LINE_HEIGHT * max(len(lines) for _, lines in row) for row in rows]
    size = (columns * (cell + padding) + padding, sum(heights) + padding * (len(rows) + 1))
    canvas, top = Image.new("RGB", size, "white"), padding
    for row, row_height in zip(rows, heights, strict=True):
        for column, (image, lines) in enumerate(row):
            _paste(canvas, image, lines, (padding + column * (cell + padding), top), cell)
        top += row_height + padding
    return canvas


def _paste(
    canvas: Image.Image, image: Image.Image | None, lines: list[str], corner: tuple[int, int], width: int
) -> None:
    if image is None:
        return
    left, top = corner
    canvas.paste(image, (left + (width - image.width) // 2, top))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT_SIZE)
    for number, line in enumerate(lines):
        position = (left + width / 2, top + image.height + number * _LINE_HEIGHT + 1)
        pen.text(position, line, fill="black", font=font, anchor="ma")


def _wrap(text: str, width: int) -> list[str]:
    """Break a caption into at most four lines of `width` pixels, with an ellipsis where text is left out."""
    font = ImageFont.load_default(_TEXT_SIZE)
    words = "".join(c if c.isprintable() else " " for c in text[:300]).split()
    lines: list[str] = []
    while words and len(lines) < _LINES:
        count = next((n for n in range(len(words), 0, -1) if font.getlength(" ".join(words[:n])) <= width), 0)
        lines.append(" ".join(words[:count]) if count else _truncate(words[0], width, font))
        words = words[count:] if count else [words[0][len(lines[-1]) :], *words[1:]]
    if words:
        lines[-1] = _truncate(lines[-1], width - font.getlength("..."), font).rstrip() + "..."
    return lines


def _truncate(text: str, width: float, font: Any) -> str:
    """Return the longest beginning of a text, at least one character, of at most `width` pixels."""
    return text[: max(1, next(n for n in range(len(text), -1, -1) if font.getlength(text[:n]) <= width or not n))]
