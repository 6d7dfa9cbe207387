"""Pictures that a Python program passes to `ldm_kit.train`: what a run's config says of them."""

from typing import Literal

from pydantic import Field

from ldm_kit.config import Config, UserError
from ldm_kit.data.images import Split


class GivenConfig(Config):
    """Pictures of a Python program; a config file cannot name them."""

    source: Literal["given"] = "given"
    resolution: int = Field(ge=1, description="side in pixels")
    channels: int = Field(ge=1, description="1 grey, 3 RGB, 4 RGBA")


def load(config: GivenConfig) -> Split:
    """Refuse to load: only the program that had the pictures can pass them again.

    Raises:
        UserError: always.
    """
    raise UserError("data.source is given: the pictures came from Python; pass them to train(..., data=)")
