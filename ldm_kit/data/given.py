"""The data config that a run records if a Python program passed its pictures to `ldm_kit.train`."""

from typing import Literal

from pydantic import Field

from ldm_kit.config import Config, UserError
from ldm_kit.data.images import Split
from ldm_kit.data.value_range import Range


class GivenConfig(Config):
    """Config of pictures that a Python program passed; a config file cannot name such pictures."""

    source: Literal["given"] = "given"
    resolution: int = Field(ge=1, description="side in pixels")
    channels: int = Field(ge=1, description="1 grey, 3 RGB, 4 RGBA; with `range`, any number")
    range: Range = Field(default=None, description="values that stand for -1 and 1; null: pictures of 8 bits")


def load(config: GivenConfig) -> Split:
    """Raise an error: the pictures came from a Python program, and only that program can pass them again.

    Raises:
        UserError: always.
    """
    raise UserError(
        "data.source is given: the pictures came from Python and are not saved with the run; pass them again as data=, "
        "or name files of the same pictures, such as data.source=folder data.path=FOLDER"
    )
