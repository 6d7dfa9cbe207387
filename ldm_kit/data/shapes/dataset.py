"""The built-in shapes: pictures of a solid in a room that differ in six known factors, those of Shapes3D.

The factors (Burgess & Kim 2018) are the hues of floor, wall and object, the object's scale and shape, and the
orientation of the room: 480,000 different pictures, rendered by ray casting, each with a caption, and for a change of
any factor the exact picture of it. The first n pictures of a seed are the same for every count. A record's fields are
the factors' values, its class is the shape, and its name is the number of the combination of values, so that a picture
is in the same part of the split under every seed.

- compositional: pictures with both values of a pair in UNSEEN, 5 % of all. Training pictures show each value, but never
  both.
- heldout: a share of the other pictures, by a hash of the name. train: the remaining pictures.
"""

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.data.caption_templates import captioned
from ldm_kit.data.factors import FactorSpace, Values, split_factors
from ldm_kit.data.images import Record, Split
from ldm_kit.data.rendered import DrawnSet, RenderedConfig, RenderedSet, Renderer
from ldm_kit.data.shapes.scene import Solid, render

CODE_VERSION = 1  # raise it whenever pixels change: old caches are then not read
HUES = ("red", "orange", "lime", "green", "mint", "cyan", "blue", "indigo", "purple", "pink")  # hues 0, 0.1, ..., 0.9
SCALES = ("tiny", "very small", "small", "smallish", "largish", "large", "very large", "huge")  # 0.75 to 1.25
_SIDES = (30, 26, 21, 17, 13, 9, 4)  # degrees, rounded: Shapes3D's orientations are 15 steps from -30 to 30
ORIENTATIONS = (*(f"{n} degrees left" for n in _SIDES), "straight on", *(f"{n} degrees right" for n in _SIDES[::-1]))
FACTORS: Mapping[str, tuple[str, ...]] = {
    "floor": HUES,
    "wall": HUES,
    "object": HUES,
    "scale": SCALES,
    "shape": ("cube", "cylinder", "sphere", "capsule"),
    "orientation": ORIENTATIONS,
}
UNSEEN: tuple[Values, ...] = (  # pairs that training never shows; together they try every factor once
    {"shape": "cube", "scale": "huge"},
    {"floor": "green", "wall": "blue"},
    {"object": "red", "orientation": "straight on"},
)
PHRASINGS = (
    "a {scale} {object} {shape} on a {floor} floor, {wall} walls, seen from {orientation}",
    "{shape}, {scale}, {object}, in a room with {wall} walls and a {floor} floor, seen from {orientation}",
    "a room with a {floor} floor and {wall} walls, seen from {orientation}: a {scale} {shape}, {object}",
)
SPACE = FactorSpace(FACTORS)


class ShapesConfig(RenderedConfig):
    """Options of the built-in shapes; each picture has a caption, six factors' values, and the shape as class."""

    source: Literal["shapes"] = Field(default="shapes", description="which data: the built-in shapes")
    count: int = Field(default=6000, ge=1, le=SPACE.size, description="number of pictures, in all parts of the split")

    @property
    def columns(self) -> Sequence[str]:
        """Names of the values that a caption template can use: the factors."""
        return [*FACTORS]


def load(config: ShapesConfig) -> Split:
    """Load training, held-out and compositional pictures; they are rendered on first use, and cached for later.

    Compositional pictures show pairs of values (such as a huge cube) that training shows only separately.

    Raises:
        UserError: no picture is left to train on.
    """
    return split_factors(captioned(load_all(config), config), UNSEEN, config.heldout, config.source)


def load_all(config: ShapesConfig) -> RenderedSet:
    """Load all `config.count` pictures, which the seed chooses, as one set; render and cache them if needed."""
    return draw(config).render()


def draw(config: ShapesConfig) -> DrawnSet:
    """Choose pictures by `config.seed`, with captions and factors' values; `DrawnSet.render` makes the pixels."""
    records = SPACE.draw_records(config.seed, config.count, len(PHRASINGS), _record)
    return DrawnSet(_renderer(config), records, FACTORS["shape"], config.folder)


def caption(values: Values, phrasing: int) -> str:
    """Return a picture's caption, such as "a huge red cube on a green floor, blue walls, seen straight on".

    Args:
        values: the value of each factor, by the factor's name.
        phrasing: which of the ways to phrase a caption: index into PHRASINGS.
    """
    text = PHRASINGS[phrasing].format(**values).replace("from straight on", "straight on")
    return re.sub(r"\ba (?=orange|indigo)", "an ", text)


def _record(number: int, phrasing: int) -> Record:
    values = SPACE.combination(number)
    return Record(f"shape-{number:06d}", caption(values, phrasing), FACTORS["shape"].index(values["shape"]), values)


def _renderer(config: ShapesConfig) -> Renderer:
    def rendered(values: Sequence[Values]) -> Tensor:
        return torch.stack([_draw(one, config.resolution) for one in values])

    return Renderer(config.source, [f"code={CODE_VERSION}", str(config.resolution)], FACTORS, rendered)


def _draw(values: Values, resolution: int) -> Tensor:
    floor, wall, surface = (_rgb(values[factor]) for factor in ("floor", "wall", "object"))
    scale = 0.75 + 0.5 * SCALES.index(values["scale"]) / (len(SCALES) - 1)
    degrees = 60 * ORIENTATIONS.index(values["orientation"]) / (len(ORIENTATIONS) - 1) - 30
    return render(Solid(values["shape"], scale, surface), floor, wall, degrees, resolution)


def _rgb(hue: str) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(HUES.index(hue) / len(HUES), 0.85, 1.0)
