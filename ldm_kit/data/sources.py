"""Where pictures come from: the union of data configs, told apart by `source`, and the one function that loads them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ldm_kit.config import UserError
from ldm_kit.data import digits, folder, given, parquet, webdataset
from ldm_kit.data.digits import DigitsConfig
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.given import GivenConfig
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji import dataset as openmoji
from ldm_kit.data.openmoji.dataset import OpenMojiConfig
from ldm_kit.data.parquet import ParquetConfig
from ldm_kit.data.webdataset import WebDatasetConfig

DataConfig = Annotated[
    OpenMojiConfig | FolderConfig | WebDatasetConfig | ParquetConfig | DigitsConfig | GivenConfig,
    Field(discriminator="source"),
]


def load(config: DataConfig) -> Split:
    """Train, heldout and compositional pictures of a source.

    Raises:
        UserError: packages missing, no such folder, nothing usable in it, too many bad pictures, or pictures that a
            Python program gave.
    """
    match config:
        case OpenMojiConfig():
            return openmoji.load(config)
        case DigitsConfig():
            return digits.load(config)
        case FolderConfig():
            return _some(folder.load(config), config.path)
        case WebDatasetConfig():
            return _some(webdataset.load(config), config.path)
        case ParquetConfig():
            return _some(parquet.load(config), config.path)
        case GivenConfig():
            return given.load(config)


def _some(split: Split, path: Path) -> Split:
    if not len(split.train):
        raise UserError(f"all {len(split.heldout)} pictures in {path} are held out; lower data.heldout")
    return split
