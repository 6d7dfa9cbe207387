"""The built-in faces: portraits in ten known factors, rendered once and cached, with captions and exact counterparts.

The style is ToonHead by Johan Melin (CC BY 4.0), from the packages dicebear-core and dicebear-styles; pixels are by
resvg: `pip install 'ldm_kit[faces]'`. There are 18.75 million different faces; face i of a seed is the same for every
count. A record's fields are the factors' values (module `values`), its class is the hair, and its name is the number of
its combination, so that a face is in the same part of the split under every seed.

- compositional: faces that show a pair of `values.UNSEEN`, 17 % of all. Training shows each value, but not the pair.
- heldout: a share of the other faces, by a hash of the name. train: the remaining faces.
"""

import importlib
import io
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ldm_kit.config import Config, UserError, cache_dir
from ldm_kit.data.faces.values import FACTORS, PHRASINGS, UNSEEN, caption, hidden, options_of
from ldm_kit.data.factors import FactorSpace, Values, split_factors
from ldm_kit.data.image_files import Colour, colour
from ldm_kit.data.images import Record, Split
from ldm_kit.data.rendered import RenderedSet, Renderer, render_set

ATTRIBUTION = "Faces: remix of ToonHead by Johan Melin (johanmelin.com), by way of DiceBear. License: CC BY 4.0"
CODE_VERSION = 1  # raise it whenever pixels change: old caches are then not read
SPACE = FactorSpace(FACTORS)
_PACKAGES = {"dicebear": "dicebear-core", "dicebear_styles": "dicebear-styles", "resvg_py": "resvg_py"}


class FacesConfig(Config):
    """Options of the built-in faces, with captions, the values of ten factors, and the hair as class."""

    source: Literal["faces"] = Field(default="faces", description="which data: the built-in faces")
    resolution: int = Field(default=64, ge=8, le=1024, description="pixels along each side")
    count: int = Field(default=6000, ge=1, le=SPACE.size, description="number of faces, in all parts of the split")
    seed: int = Field(default=0, ge=0, description="which faces are drawn")
    heldout: float = Field(default=0.05, ge=0, lt=1, description="share held out, by a hash of each face")
    background: Colour = Field(default="white", description="colour behind the faces: a name or #rrggbb")
    cache: Path | None = Field(
        default=None, description="folder for the rendered set; default: LDM_KIT_CACHE, else ~/.cache/ldm_kit"
    )

    @property
    def channels(self) -> int:
        """Channels of a picture: 3, RGB."""
        return 3


def load(config: FacesConfig) -> Split:
    """Load training, held-out and compositional faces; they are rendered on first use and read from the cache later.

    Raises:
        UserError: the `faces` extra is not installed, or no face is left to train on.
    """
    return split_factors(load_all(config), UNSEEN, config.heldout, config.source)


def load_all(config: FacesConfig) -> RenderedSet:
    """Load all faces as one set, in the order in which they are drawn; render and cache them if needed.

    Raises:
        UserError: the `faces` extra is not installed.
    """
    _check_packages()
    records = SPACE.draw_records(config.seed, config.count, len(PHRASINGS), _record)
    folder = (config.cache or cache_dir()).expanduser() / "rendered"
    return render_set(_renderer(config), records, FACTORS["hair"], folder)


def _record(number: int, phrasing: int) -> Record:
    values = SPACE.combination(number)
    return Record(f"face-{number:08d}", caption(values, phrasing), FACTORS["hair"].index(values["hair"]), values)


def _renderer(config: FacesConfig) -> Renderer:
    background = "#{:02x}{:02x}{:02x}".format(*colour(config.background))
    versions = [f"{name}={version(name)}" for name in _PACKAGES.values()]
    key = [f"code={CODE_VERSION}", *versions, str(config.resolution), background]

    def render(values: Sequence[Values]) -> Tensor:
        return torch.stack([_rasterise(_drawing(one), config.resolution, background) for one in values])

    return Renderer(config.source, key, FACTORS, render, hidden)


def _drawing(values: Values) -> str:
    """Return a face as an SVG drawing."""
    return importlib.import_module("dicebear").Avatar(_style(), options_of(values)).to_string()


@cache
def _style() -> Any:
    definition = files("dicebear_styles").joinpath("toon-head.json").read_text(encoding="utf-8")
    return importlib.import_module("dicebear").Style(json.loads(definition))


def _rasterise(drawing: str, resolution: int, background: str) -> Tensor:
    svg_to_bytes = importlib.import_module("resvg_py").svg_to_bytes
    png = svg_to_bytes(
        svg_string=drawing, background=background, width=resolution, height=resolution, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _check_packages() -> None:
    for module in _PACKAGES:
        try:
            importlib.import_module(module)
        except ImportError:
            raise UserError(f"faces need the package {_PACKAGES[module]}; pip install 'ldm_kit[faces]'") from None
