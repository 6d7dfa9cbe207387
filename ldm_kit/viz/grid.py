"""Pictures as images, and grids of them with captions; the channels of the pictures are kept: grey, RGB or RGBA."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ldm_kit.viz.captions import LINE_HEIGHT, LINES, draw, wrap

MAX_SIDE = 3200  # pixels of a grid's width and height, above which its pictures are shrunk
MAX_ROW = 16  # most pictures that are laid out in one row because they belong together
_LEAST_SIDE = 96  # to which smaller pictures are enlarged, and least width of a cell with a caption, in pixels
_SMALLEST = 16  # longer side below which no picture is shrunk, however many there are
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_image(picture: Tensor, scale: int = 1) -> Image.Image:
    """Return a picture, uint8 [C, H, W], as an image L, RGB or RGBA, each pixel repeated `scale` times.

    Raises:
        ValueError: not uint8 [1 | 3 | 4, H, W], or a scale below 1.
    """
    return _images(picture[None], scale)[0]


def enlargement(side: int) -> int:
    """Return how often the pixels of a picture are repeated in a grid so that it has at least 96 pixels a side."""
    return max(1, math.ceil(_LEAST_SIDE / side))


def columns_for(count: int, row: int) -> int:
    """Return in how many columns pictures are laid out.

    Args:
        count: number of pictures.
        row: how many of them belong together.

    Returns:
        As many as belong together, or a multiple of it so that there are at most twice as many rows; for 1, or more
        than 16, about as many as rows.
    """
    if not 1 < row <= MAX_ROW:
        return max(1, math.ceil(math.sqrt(count)))
    return row * max(1, math.ceil(math.sqrt(count / 2) / row))


def grid(
    pictures: Tensor, columns: int, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2
) -> Image.Image:
    """Lay pictures out in rows on white, each with its caption below.

    Captions wrap to at most four lines and widen the cells of small pictures to 96 pixels. Pictures are shrunk
    (antialiased) where the grid would exceed 3,200 pixels a side.

    Args:
        pictures: uint8 [N, C, H, W] with C = 1 (grey), 3 (RGB) or 4 (RGBA), which is also the kind of the grid.
        columns: pictures in a row.
        scale: how often each pixel is repeated, in both directions.
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
    columns = min(columns, len(above))
    for start in range(0, len(above), max(columns, 1)):
        for row in (above[start : start + columns], below[start : start + columns]):
            cells += [*row, *[(None, "")] * (columns - len(row))]
    return _lay(cells, columns, padding)


def strip(pictures: Tensor, scale: int = 1, captions: Sequence[str] | None = None, padding: int = 2) -> Image.Image:
    """Lay out all pictures, uint8 [N, C, H, W], in one row; arguments as for `grid`."""
    return grid(pictures, max(len(pictures), 1), scale, captions, padding)


_Cell = tuple[Image.Image | None, str]


def _captioned(pictures: Tensor, scale: int, captions: Sequence[str] | None) -> list[_Cell]:
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"got {len(captions)} captions for {len(pictures)} pictures; expected one each")
    return list(zip(_images(pictures, scale), captions or [""] * len(pictures), strict=True))


def _images(pictures: Tensor, scale: int) -> list[Image.Image]:
    """Convert pictures, uint8 [N, C, H, W], to enlarged images."""
    shape, kind = [*pictures.shape], str(pictures.dtype)
    if len(shape) != 4 or not len(pictures) or shape[1] not in _MODES or kind != "torch.uint8":
        raise ValueError(f"got {kind} {shape}; expected at least one picture, uint8 [N, 1 | 3 | 4, H, W]")
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    arrays = pictures.detach().cpu().permute(0, 2, 3, 1).numpy().repeat(scale, 1).repeat(scale, 2)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else np.ascontiguousarray(a)) for a in arrays]


def _lay(cells: Sequence[_Cell], columns: int, padding: int) -> Image.Image:
    """Lay out cells row by row; the height of a row is that of its pictures and its longest caption."""
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
    """Return the cells with pictures so small, though of 16 pixels, that their grid has at most `MAX_SIDE` a side."""
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
