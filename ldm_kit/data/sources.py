"""Data sources: the union of their config classes, distinguished by the key `source`, and a function that loads any.

To add a source, write a module with a config class and a `load` function, and add a line for both to SOURCES.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

from pydantic import Field

from ldm_kit.data import digits, folder, given, parquet, webdataset
from ldm_kit.data.caption_templates import CaptionedConfig
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.faces import dataset as faces
from ldm_kit.data.faces.dataset import FacesConfig
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.given import GivenConfig
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji import dataset as openmoji
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.rendered import DrawnSet, RenderedConfig
from ldm_kit.data.shapes import dataset as shapes
from ldm_kit.data.shapes.dataset import ShapesConfig
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

if TYPE_CHECKING:

    class DataConfig(Protocol):
        """Config of any data source; the key `source` names the source."""

        @property
        def source(self) -> str: ...
        @property
        def resolution(self) -> int: ...
        @property
        def channels(self) -> int: ...
else:
    DataConfig = Annotated[Union[tuple(SOURCES)], Field(discriminator="source")]  # noqa: UP007


def load(config: DataConfig, *, captions: bool = True) -> Split:
    """Load the pictures of a data source, split into training, held-out and (if any) compositional pictures.

    Args:
        config: config of the data source, an instance of one of the classes in SOURCES.
        captions: whether captions or classes are used; False: a picture with an unreadable caption is used too.

    Raises:
        UserError: a package is missing, the files do not exist or cannot be used, or no picture is left to train on.
    """
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
