"""Convert pictures (tensors) to Pillow images and lay them out in grids with captions; grey, RGB and RGBA are kept.

Pictures of 65536 levels (uint16) are shown with 256, and one rule says which channels: all of 1 (grey) or 3 (RGB), the
first of 2, and the first three of 4 or more.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_kit.viz.captions import LINE_HEIGHT, LINES, draw, wrap

MAX_SIDE = 3200  # limit of a grid's width and height in pixels; pictures of a larger grid are shrunk
MAX_ROW = 16  # most pictures that `columns_for` keeps in one row because they belong together
_LEAST_SIDE = 96  # pixels; pictures of a smaller side are enlarged, and cells with captions are at least as wide
_SMALLEST = 16  # pixels; no picture is shrunk to a longer side below this, however large the grid is
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's image mode by number of channels


def to_image(picture: Tensor, scale: int = 1) -> Image.Image:
    """Convert a picture, uint8 [C, H, W] with C = 1, 3 or 4, or uint16 [C, H, W], to an image in mode L, RGB or RGBA.

    Each pixel is repeated `scale` times in both directions.

    Raises:
        ValueError: the picture is neither uint8 [1 | 3 | 4, H, W] nor uint16, or `scale` is below 1.
    """
    return _images(picture[None], scale)[0]


def enlargement(side: int) -> int:
    """Return the smallest `scale` for `grid` that enlarges pictures of `side` pixels to 96 pixels a side or more."""
    return max(1, math.ceil(_LEAST_SIDE / side))


def columns_for(count: int, row: int) -> int:
    """Return a number of columns for a grid of pictures, so that pictures that belong together lie in one row.

    Args:
        count: number of pictures in the grid.
        row: number of consecutive pictures that belong together, such as samples of one prompt.

    Returns:
        The smallest multiple of `row` for which the grid has at most twice as many rows as columns. If `row` is 1 or
        above 16, the square root of `count`, rounded up: about as many columns as rows.
    """
    if not 1 < row <= MAX_ROW:
        return max(1, math.ceil(math.sqrt(count)))
    return row * max(1, math.ceil(math.sqrt(count / 2) / row))


def grid(
    pictures: Tensor, columns: int, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2
) -> Image.Image:
    """Lay pictures out row by row on a white image, each with its caption below.

    Captions are wrapped into at most four lines. Cells with captions are at least 96 pixels wide. If the grid would
    exceed 3,200 pixels a side, the pictures are shrunk (antialiased).

    Args:
        pictures: uint8 [N, C, H, W] with C = 1 (grey), 3 (RGB) or 4 (RGBA), and the grid has the same channels; or
            uint16 with any channels.
        columns: number of pictures in a row.
        scale: number of times that each pixel is repeated, in both directions.
        captions: a caption for each picture; None: no captions.
        padding: pixels between cells and around the grid.

    Raises:
        ValueError: there are no pictures, they are not uint8 [N, 1 | 3 | 4, H, W], `columns` or `scale` is below 1,
            `padding` is negative, or the number of captions is not N.
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
    """Lay out originals above their reconstructions: a row of originals, a row of their reconstructions, and so on.

    Args:
        originals: uint8 [N, C, H, W], as for `grid`.
        reconstructions: reconstructions of the originals, in the same shape.
        columns: number of pictures in a row.
        scale: number of times that each pixel is repeated, in both directions.
        captions: a caption for each pair, drawn below the reconstruction; None: no captions.
        padding: pixels between cells and around the grid.

    Raises:
        ValueError: originals and reconstructions differ in shape, there are none, they are not uint8 [N, 1 | 3 | 4, H,
            W], `columns` or `scale` is below 1, `padding` is negative, or the number of captions is not N.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(f"got shapes {[*originals.shape]} and {[*reconstructions.shape]}; expected equal ones")
    above, below = _captioned(originals, scale, None), _captioned(reconstructions, scale, captions)
    cells: list[_Cell] = []
    columns = min(columns, len(above))
    for start in range(0, len(above), max(columns, 1)):
        for row in (above[start : start + columns], below[start : start + columns]):
            cells += [*row, *[(None, "")] * (columns - len(row))]
    return _lay(cells, columns, padding)


def strip(pictures: Tensor, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2) -> Image.Image:
    """Lay out pictures, uint8 [N, C, H, W], in one row, each with its caption (None: no captions) below.

    Each pixel is repeated `scale` times in both directions; `padding` pixels are between pictures and around the row.

    Raises:
        ValueError: there are no pictures, they are not uint8 [N, 1 | 3 | 4, H, W], `scale` is below 1, `padding` is
            negative, or the number of captions is not N.
    """
    return grid(pictures, max(len(pictures), 1), scale, captions, padding)


_Cell = tuple[Image.Image | None, str]


def _captioned(pictures: Tensor, scale: int, captions: Sequence[str] | None) -> list[_Cell]:
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"got {len(captions)} captions for {len(pictures)} pictures; expected one each")
    return list(zip(_images(pictures, scale), captions or [""] * len(pictures), strict=True))


def _images(pictures: Tensor, scale: int) -> list[Image.Image]:
    """Convert pictures [N, C, H, W] to Pillow images in which each pixel is repeated `scale` times."""
    pictures = _shown(pictures)
    shape, kind = [*pictures.shape], str(pictures.dtype)
    if len(shape) != 4 or not len(pictures) or shape[1] not in _MODES or kind != "torch.uint8":
        raise ValueError(f"got {kind} {shape}; expected at least one picture, uint8 [N, 1 | 3 | 4, H, W]")
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    arrays = pictures.detach().cpu().permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else np.ascontiguousarray(a)) for a in arrays]


def _shown(pictures: Tensor) -> Tensor:
    """Return the channels that are shown of pictures uint16 [N, C, H, W], in 256 levels; others as they are."""
    if str(pictures.dtype) != "torch.uint16" or pictures.ndim != 4:
        return pictures
    channels = pictures[:, : 3 if pictures.shape[1] >= 3 else 1]
    return (channels.float() / 257).round().byte()


def _lay(cells: Sequence[_Cell], columns: int, padding: int) -> Image.Image:
    """Lay out cells, pairs of an image (None: an empty cell) and a caption, row by row on a white image.

    A row is as high as its pictures and the longest of its captions together. `columns` is the number of cells in a
    row, `padding` the pixels between cells and around them.
    """
    if columns < 1 or padding < 0:
        raise ValueError(f"expected at least 1 column and padding of 0 or more, got {columns} and {padding}")
    columns = min(columns, len(cells))
    cells = _shrunk(cells, columns, padding)
    width, height = next(image.size for image, _ in cells if image is not None)
    cell = max(width, _LEAST_SIDE) if any(text for _, text in cells) else width
    wrapped = [(image, wrap(text, cell - 4)) for image, text in cells]
    rows = [wrapped[start : start + columns] for start in range(0, len(wrapped), columns)]
    heights = [height + LINE_HEIGHT * max(len(lines) for _, lines in row) for row in rows]
    size = (columns * (cell + padding) + padding, sum(heights) + padding * (len(rows) + 1))
    mode = next(image.mode for image, _ in cells if image is not None)
    canvas, top = Image.new(mode, size, "white"), padding
    for row, row_height in zip(rows, heights, strict=True):
        for column, (image, lines) in enumerate(row):
            _paste(canvas, image, lines, (padding + column * (cell + padding), top), cell)
        top += row_height + padding
    return canvas


def _shrunk(cells: Sequence[_Cell], columns: int, padding: int) -> Sequence[_Cell]:
    """Shrink the pictures of cells so that a grid of `columns` columns has at most MAX_SIDE (3,200) pixels a side.

    A cell is a pair of an image (None: an empty cell) and a caption; `padding` is in pixels. No picture gets smaller
    than 16 pixels on its longer side, even if the grid is then larger.
    """
    width, height = next(image.size for image, _ in cells if image is not None)
    rows = math.ceil(len(cells) / columns)
    lines = LINES if any(text for _, text in cells) else 0
    space = [(MAX_SIDE - padding) / count - padding for count in (columns, rows)]
    share = min(space[0] / width, (space[1] - lines * LINE_HEIGHT) / height)
    share = min(1, max(share, _SMALLEST / max(width, height)))
    if share == 1:
        return cells
    size = (max(1, int(width * share)), max(1, int(height * share)))
    return [(image and image.resize(size, Image.Resampling.LANCZOS), text) for image, text in cells]


def _paste(
    canvas: Image.Image, image: Image.Image | None, lines: list[str], corner: tuple[int, int], width: int
) -> None:
    if image is None:
        return
    left, top = corner
    canvas.paste(image, (left + (width - image.width) // 2, top))
    if lines:
        canvas.paste(draw(lines, width), (left, top + image.height))
