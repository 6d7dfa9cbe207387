"""Where pictures come from: the union of data configs, told apart by `source`, and the one function that loads them."""

from typing import Annotated

from pydantic import Field

from ldm_kit.config import UserError
from ldm_kit.data import folder, openmoji
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.images import Split
from ldm_kit.data.openmoji import OpenMojiConfig

DataConfig = Annotated[OpenMojiConfig | FolderConfig, Field(discriminator="source")]


def load(config: DataConfig) -> Split:
    """Train, heldout and compositional pictures of a source.

    Raises:
        UserError: packages missing, no such folder, nothing usable in it, or too many bad pictures.
    """
    match config:
        case OpenMojiConfig():
            return openmoji.load(config)
        case FolderConfig():
            split = folder.load(config)
            if not len(split.train):
                raise UserError(f"all {len(split.heldout)} pictures in {config.path} are held out; lower data.heldout")
            return split
