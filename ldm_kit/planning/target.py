"""What a plan aims at: minutes, or a quality. Imports nothing slow, as the command line reads it."""

from dataclasses import dataclass
from typing import Literal

from ldm_kit.config import UserError

Quality = Literal["draft", "good", "best"]
Scale = Literal["small", "medium", "large"]


@dataclass(frozen=True)
class Target:
    """The largest networks and resolution of a quality, and the steps as a multiple of a recipe's."""

    scale: Scale
    resolution: int
    times: float


QUALITIES: dict[Quality, Target] = {
    "draft": Target("small", 64, 0.5),
    "good": Target("small", 128, 2.0),
    "best": Target("medium", 256, 1.0),
}


def check_target(minutes: float | None, quality: str | None) -> None:
    """Check that either minutes or a quality is given; raise UserError if both or none are."""
    if (minutes is None) == (quality is None):
        raise UserError("expected either --minutes MINUTES or --quality draft, good or best")
