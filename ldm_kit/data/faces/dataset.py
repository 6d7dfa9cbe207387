"""The built-in faces: rendered portraits that differ in ten factors (hair, mouth, ...), whose values are known.

Every face has a caption, and for a change of any factor the exact picture of it. The style is ToonHead by Johan Melin
(CC BY 4.0), from the packages dicebear-core and dicebear-styles; pixels are by resvg: `pip install 'ldm_kit[faces]'`.
Pictures are rendered once and cached. There are 18.75 million different faces; the first n faces of a seed are the same
for every count. A record's fields are the factors' values (module `values`), its class is the hair, and its name is the
number of the combination of values, so that a face is in the same part of the split under every seed.

- compositional: faces with both values of a pair in `values.UNSEEN`, 17 % of all. Training faces show each value, but
  never both.
- heldout: a share of the other faces, by a hash of the name. train: the remaining faces.
"""

import importlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ldm_kit.data.caption_templates import captioned
from ldm_kit.data.faces.values import FACTORS, PHRASINGS, UNSEEN, caption, hidden, options_of
from ldm_kit.data.factors import FactorSpace, Values, split_factors
from ldm_kit.data.image_files import Colour, colour
from ldm_kit.data.images import Record, Split
from ldm_kit.data.rendered import DrawnSet, RenderedConfig, RenderedSet, Renderer
from ldm_kit.data.svg import rasterise
from ldm_kit.packages import check_extra

ATTRIBUTION = "Faces: remix of ToonHead by Johan Melin (johanmelin.com), by way of DiceBear. License: CC BY 4.0"
CODE_VERSION = 1  # raise it whenever pixels change: old caches are then not read
SPACE = FactorSpace(FACTORS)
_PACKAGES = {"dicebear": "dicebear-core", "dicebear_styles": "dicebear-styles", "resvg_py": "resvg_py"}


class FacesConfig(RenderedConfig):
    """Options of the built-in faces; each has a caption, a value of each of ten factors, and the hair as class."""

    source: Literal["faces"] = Field(default="faces", description="which data: the built-in faces")
    count: int = Field(default=6000, ge=1, le=SPACE.size, description="number of faces, in all parts of the split")
    background: Colour = Field(default="white", description="colour behind the faces: a name or #rrggbb")

    @property
    def columns(self) -> Sequence[str]:
        """Names of the values that a caption template can use: the factors."""
        return [*FACTORS]


def load(config: FacesConfig) -> Split:
    """Load training, held-out and compositional faces; they are rendered on first use and read from the cache later.

    Compositional faces show pairs of values (such as winking eyes and tan skin) that training shows only separately.

    Raises:
        UserError: the `faces` extra is not installed, or no face is left to train on.
    """
    return split_factors(captioned(load_all(config), config), UNSEEN, config.heldout, config.source)


def load_all(config: FacesConfig) -> RenderedSet:
    """Load all `config.count` faces, which the seed chooses, as one set; render and cache them if needed.

    Raises:
        UserError: the `faces` extra is not installed.
    """
    return draw(config).render()


def draw(config: FacesConfig) -> DrawnSet:
    """Choose faces at random by `config.seed`, with captions and factors' values; `DrawnSet.render` makes the pixels.

    Raises:
        UserError: the `faces` extra is not installed.
    """
    check_extra(_PACKAGES, "faces", "data.source faces")
    records = SPACE.draw_records(config.seed, config.count, len(PHRASINGS), _record)
    return DrawnSet(_renderer(config), records, FACTORS["hair"], config.folder)


def _record(number: int, phrasing: int) -> Record:
    values = SPACE.combination(number)
    return Record(f"face-{number:08d}", caption(values, phrasing), FACTORS["hair"].index(values["hair"]), values)


def _renderer(config: FacesConfig) -> Renderer:
    background = "#{:02x}{:02x}{:02x}".format(*colour(config.background))
    versions = [f"{name}={version(name)}" for name in _PACKAGES.values()]
    key = [f"code={CODE_VERSION}", *versions, str(config.resolution), background]

    def render(values: Sequence[Values]) -> Tensor:
        return torch.stack([rasterise(config.resolution, background, svg_string=_drawing(one)) for one in values])

    return Renderer(config.source, key, FACTORS, render, hidden)


def _drawing(values: Values) -> str:
    """Return the SVG text of the face with these `values`, {factor: value}, such as {"hair": "bun"}."""
    return importlib.import_module("dicebear").Avatar(_style(), options_of(values)).to_string()


@cache
def _style() -> Any:
    definition = files("dicebear_styles").joinpath("toon-head.json").read_text(encoding="utf-8")
    return importlib.import_module("dicebear").Style(json.loads(definition))
