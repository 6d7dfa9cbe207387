"""Data sources: the union of their config classes, distinguished by the key `source`, and a function that loads any.

To add a source, write a module with a config class and a `load` function, and add a line for both to SOURCES.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, Union

from pydantic import BeforeValidator, Field, model_validator

from ldm_kit.config import Config
from ldm_kit.data import digits, folder, given, parquet, webdataset
from ldm_kit.data.caption_templates import CaptionedConfig
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.faces import dataset as faces
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.given import GivenConfig
from ldm_kit.data.hub import HubConfig, local_config
from ldm_kit.data.images import Split
from ldm_kit.data.mixed import mix
from ldm_kit.data.openmoji import dataset as openmoji
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.rendered import DrawnSet, RenderedConfig
from ldm_kit.data.shapes import dataset as shapes
from ldm_kit.data.shapes.dataset import ShapesConfig
from ldm_kit.data.value_range import Percentiles
from ldm_kit.data.webdataset import WebDatasetConfig

SOURCES: dict[type, Callable[[Any], Split]] = {
    OpenMojiConfig: openmoji.load,
    FolderConfig: folder.load,
    WebDatasetConfig: webdataset.load,
    ParquetConfig: parquet.load,
    DigitsConfig: digits.load,
    FacesConfig: faces.load,
    ShapesConfig: shapes.load,
    GivenConfig: given.load,
}

RENDERED: dict[type, Callable[[Any], DrawnSet]] = {FacesConfig: faces.draw, ShapesConfig: shapes.draw}


def _as_tuple(parts: Any) -> Any:
    return tuple(parts) if isinstance(parts, list) else parts


if TYPE_CHECKING:

    class DataConfig(Protocol):
        """Config of any data source; the key `source` names the source."""

        @property
        def source(self) -> str: ...
        @property
        def resolution(self) -> int: ...
        @property
        def channels(self) -> int: ...

    _Part = DataConfig
else:
    _single = tuple(kind for kind in SOURCES if kind is not GivenConfig)
    _Part = Annotated[Union[(*_single, HubConfig)], Field(discriminator="source")]


class PartConfig(Config):
    """One of the data sets of a mix."""

    share: float = Field(gt=0, description="share of the training samples, relative to those of the other parts")
    data: _Part = Field(description="the data set; the key `source` names its kind")


class MixConfig(Config):
    """Options of a data source that joins several data sets, each with a share of the training samples."""

    source: Literal["mix"] = Field(default="mix", description="which data: several data sets with shares")
    parts: Annotated[tuple[PartConfig, ...], BeforeValidator(_as_tuple)] = Field(
        description="the data sets, 2 to 16: share and data of each"
    )

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, the same in all parts."""
        return self.parts[0].data.resolution

    @property
    def channels(self) -> int:
        """Channels of a picture, the same in all parts: 1 grey, 3 RGB, 4 RGBA."""
        return self.parts[0].data.channels

    @property
    def alpha(self) -> str:
        """What transparency means, the same in all parts."""
        return _alpha(self.parts[0].data)

    @property
    def range(self) -> Any:
        """The values that become -1 and 1, the same in all parts; None: pictures of 8 bits."""
        return getattr(self.parts[0].data, "range", None)

    @model_validator(mode="after")
    def _check_alike(self) -> Self:
        if not 2 <= len(self.parts) <= 16:
            raise ValueError(f"parts are {len(self.parts)}; expected 2 to 16 data sets")
        for number, one in enumerate(self.parts, 1):
            if getattr(one.data, "buckets", None) is not None:
                raise ValueError(f"part {number} has buckets, but the pictures of a mix are squares; leave them out")
            if isinstance(getattr(one.data, "range", None), Percentiles):
                raise ValueError(f"part {number} has percentiles as range, but all parts need one; expected numbers")
        first = self.parts[0].data
        for number, other in enumerate([one.data for one in self.parts[1:]], 2):
            for name in ("resolution", "channels"):
                if getattr(other, name) != getattr(first, name):
                    raise ValueError(
                        f"part {number} ({other.source}) has {name} {getattr(other, name)} and part 1 "
                        f"({first.source}) {getattr(first, name)}; expected the same in all parts"
                    )
            if getattr(other, "range", None) != self.range:
                raise ValueError(f"part {number} and part 1 differ in range; expected the same in all parts")
            if _alpha(other) != _alpha(first):
                raise ValueError(
                    f"part {number} has alpha {_alpha(other)} and part 1 {_alpha(first)}; expected the same"
                )
        return self


def _alpha(config: Any) -> str:
    return getattr(config, "alpha", "flatten")


if not TYPE_CHECKING:
    DataConfig = Annotated[Union[(*SOURCES, HubConfig, MixConfig)], Field(discriminator="source")]


def load(config: DataConfig, *, captions: bool = True) -> Split:
    """Load the pictures of a data source, split into training, held-out and (if any) compositional pictures.

    Args:
        config: config of the data source, an instance of one of the classes in SOURCES.
        captions: whether captions or classes are used; False: a picture with an unreadable caption is used too.

    Raises:
        UserError: a package is missing, the files do not exist or cannot be used, or no picture is left to train on.
    """
    if isinstance(config, HubConfig):
        return load(local_config(config), captions=captions)
    if isinstance(config, MixConfig):
        return mix([load(one.data, captions=captions) for one in config.parts], [one.share for one in config.parts])
    if not captions and isinstance(config, FolderConfig | WebDatasetConfig):
        config = config.model_copy(update={"on_bad_caption": "ignore"})
    if not captions and isinstance(config, CaptionedConfig):
        config = config.model_copy(update={"caption_template": None})
    return SOURCES[type(config)](config)


def draw(config: RenderedConfig) -> DrawnSet:
    """Choose the pictures of faces or shapes at random by the config's seed, without rendering them.

    Raises:
        UserError: a package is missing.
    """
    return RENDERED[type(config)](config)
