"""A sheet of pictures in sections under titles, with their prompts, and a line of attribution."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from ldm_kit.viz import captions
from ldm_kit.viz.grid import enlargement, grid

COLUMNS = 4  # pictures in a row


@dataclass(frozen=True, eq=False)
class Section:
    """A section of a sheet: pictures under one title, such as those for prompts that were seen in training."""

    title: str
    pictures: Tensor  # uint8 [N, C, R, R]
    prompts: Sequence[str] | None  # the N prompts, which are printed below the pictures; None: nothing is


def sheet(sections: Sequence[Section], attribution: str) -> Image.Image:
    """Lay out sections of pictures below each other, each under its title, and a line of attribution below all.

    Args:
        sections: at least one section, with at least one picture each, all of one shape.
        attribution: who made the pictures that the model was trained on, and their licence; "": no such line.
    """
    grids = [
        grid(one.pictures, COLUMNS, 2 * enlargement(one.pictures.shape[-1]), captions=one.prompts) for one in sections
    ]
    width = max(image.width for image in grids)
    rows = [row for one, image in zip(sections, grids, strict=True) for row in (_line(one.title, width), image)]
    return _stack([*rows, *([_line(attribution, width)] if attribution else [])], width)


def _line(text: str, width: int) -> Image.Image:
    return captions.draw(["", *captions.wrap(text, width), ""], width)


def _stack(images: Sequence[Image.Image], width: int) -> Image.Image:
    canvas, top = Image.new("RGB", (width, sum(image.height for image in images)), "white"), 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas
