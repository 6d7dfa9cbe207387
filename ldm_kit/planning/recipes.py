"""Recipes for a folder of pictures: resolution, size of the networks, and the steps that a good result takes.

The size `small` is that of configs/faces (measured on CPUs: docs/results/plans.md); `medium` and `large` are for GPUs
and have not been measured.
"""

from dataclasses import dataclass

from ldm_kit.config import UserError
from ldm_kit.planning.pictures import FolderSummary
from ldm_kit.planning.target import Scale

RESOLUTIONS = (32, 64, 128, 256, 512)
PIXELS = 32  # pictures with a smaller side are diffused as pixels, without a first stage


@dataclass(frozen=True)
class Networks:
    """Widths and batches of both stages, and the steps that a good result takes."""

    first: tuple[int, ...]  # widths of the autoencoder by level; the last is used for all deeper levels
    unet: tuple[int, ...]  # widths of the U-Net by level, likewise
    layers: int  # residual blocks in each level of the U-Net
    batches: tuple[int, int]  # pictures in a step of stage 1 and of stage 2
    steps: tuple[int, int]  # steps of stage 1 and of stage 2
    resolutions: tuple[int, int]  # smallest and largest resolution that such networks are for


NETWORKS: dict[Scale, Networks] = {
    "small": Networks((32, 64, 128), (64, 128), 1, (8, 64), (1000, 2400), (8, 128)),
    "medium": Networks((64, 128, 256), (192, 384), 2, (16, 64), (10_000, 30_000), (32, 256)),
    "large": Networks((128, 256, 512), (320, 640, 1280), 2, (16, 64), (40_000, 150_000), (64, 512)),
}


@dataclass(frozen=True)
class Recipe:
    """Resolution and networks of both stages, before their steps are chosen."""

    resolution: int
    scale: Scale
    condition: str  # "text", "class" or "none"
    channels: int  # of a picture: 1 grey, 3 RGB

    @property
    def networks(self) -> Networks:
        """Widths, batches and steps."""
        return NETWORKS[self.scale]

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of stage 1 and of stage 2 that a good result takes; twice as many from 128 px for small networks."""
        times = 2 if self.scale == "small" and self.resolution >= 128 else 1
        return self.networks.steps[0] * times, self.networks.steps[1] * times

    @property
    def in_pixels(self) -> bool:
        """Whether pixels are diffused, without a first stage."""
        return self.resolution < PIXELS

    @property
    def factor(self) -> int:
        """Reduction factor f of the first stage; 1: there is none."""
        return 1 if self.in_pixels else 4 if self.resolution < 64 else 8

    @property
    def latent_side(self) -> int:
        """Side h = w of what is diffused."""
        return self.resolution // self.factor

    def __str__(self) -> str:
        what = (
            "pixels"
            if self.in_pixels
            else f"latents of {self.latent_side} x {self.latent_side} x 4 (f = {self.factor})"
        )
        return f"{self.resolution} px, {what}, {self.scale} networks"

    @property
    def cost(self) -> float:
        """About how long a step takes, in units of a step of the small recipe at 64 px."""
        return {"small": 1.0, "medium": 6.0, "large": 30.0}[self.scale] * (self.resolution / 64) ** 2


def recipes(summary: FolderSummary, resolution: int | None = None) -> list[Recipe]:
    """Return the recipes for a folder, by resolution and then by the networks' size; the last is the best.

    Args:
        summary: what the folder holds.
        resolution: pixels along each side; None: those that the pictures have enough pixels for, or, for pictures
            smaller than 32 px, the largest multiple of 4 within them, from 8.

    Raises:
        UserError: no recipe is for this resolution.
    """
    if resolution is not None:
        _check_resolution(resolution)
        sides: tuple[int, ...] = (resolution,)
    elif summary.side < PIXELS:
        sides = (max(8, summary.side // 4 * 4),)
    else:
        sides = tuple(side for side in RESOLUTIONS if side <= summary.side)
    channels = 1 if summary.grey else 3
    return [
        Recipe(side, scale, summary.condition, channels)
        for side in sides
        for scale, networks in NETWORKS.items()
        if networks.resolutions[0] <= side <= networks.resolutions[1]
    ]


def _check_resolution(resolution: int) -> None:
    multiple = 4 if resolution < PIXELS else 8 if resolution < 64 else 16
    if not 8 <= resolution <= RESOLUTIONS[-1] or resolution % multiple:
        raise UserError(
            f"--resolution is {resolution}; expected 8 to {RESOLUTIONS[-1]}, a multiple of 4 below {PIXELS}, of 8 "
            "below 64, and of 16 from there"
        )
