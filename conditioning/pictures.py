"""Pictures as conditions: maps that are concatenated to the denoiser's input (Rombach et al. 2022, sections 3.3, 4.4).

A kind of picture condition is one frozen config class, a subclass of `PictureCondition`, which also computes the maps.
It has no weights. Random numbers, and the autoencoder that encodes pictures, are arguments.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from conditioning.base import ConditionerConfig
from conditioning.condition import Condition, ConditioningError
from conditioning.none import NoConfig

IMAGE, MASK, LEVEL = "image", "mask", "level"
"""Names of what a picture condition is made from: a picture, a mask of it, and a noise level."""

Space = Literal["auto", "latents", "pixels"]
SPACE: Space = Field(
    default="auto",
    description="what the picture becomes: latents of the run's autoencoder, or pixels scaled to the latents' size; "
    "auto: latents where there is an autoencoder",
)


class Draws(Protocol):
    """Random numbers for the B samples of a batch; those of different names are independent."""

    def uniform(self, name: str, count: int) -> Tensor:
        """Return `count` uniform numbers in [0, 1) for each sample, [B, count]."""
        ...

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers for each sample, [B, *shape]."""
        ...


@dataclass(frozen=True, eq=False)
class Frame:
    """What maps must fit: the size of the denoiser's input, and the autoencoder that makes it."""

    size: tuple[int, int]  # height and width of the denoiser's input
    encode: Callable[[Tensor], Tensor] | None = None  # pictures [B, C, R, R] in [-1, 1] to latents; None: pixels

    def maps(self, pictures: Tensor, space: Space) -> Tensor:
        """Return pictures [B, C, R, R] in [-1, 1] as maps [B, C', h, w]: latents, or pixels of that size."""
        if self.encode is not None and space != "pixels":
            return self.encode(pictures)
        return scaled(pictures, self.size)


class PictureCondition(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of picture conditions: settings of the `condition:` section, and how the maps are made.

    In training, `example` makes from each training picture what a user would give (a picture with a mask, a small
    picture), and `condition` the maps of that. In sampling, `condition` gets what the user gives. The picture is never
    dropped for guidance; captions or classes beside it are. A subclass narrows `kind` to a Literal with a default.
    """

    kind: str

    given: ClassVar[tuple[str, ...]] = (IMAGE,)
    """Names of the pictures that a user gives."""

    takes_level: ClassVar[bool] = False
    """Whether the denoiser takes the noise level of the picture as an input, `Condition.level`."""

    @property
    def most_level(self) -> int:
        """The greatest noise level of the training; 0 where the denoiser takes none."""
        return 0

    reads_column: ClassVar[bool] = False
    """Whether the picture is that of a metadata column, `column`, rather than made from the training picture."""

    reads_pictures: ClassVar[bool] = False
    takes_pictures: ClassVar[bool] = True
    """Whether a user gives pictures."""

    @property
    def prompts(self) -> ConditionerConfig:
        """The config of the captions or classes beside the picture: none."""
        return NoConfig()

    @property
    def picture(self) -> "PictureCondition | None":
        """The picture condition: this object."""
        return self

    @property
    def members(self) -> tuple[ConditionerConfig, ...]:
        """The configs of the conditions that can be dropped: none."""
        return ()

    @abstractmethod
    def channels(self, picture: int, latent: int | None) -> int:
        """Return the channels of the maps.

        Args:
            picture: channels of a picture.
            latent: channels of a latent; None: the denoiser's input is pixels.
        """

    def side(self, resolution: int) -> int:
        """Return the pixels along each side of the picture that a user gives, for samples of side `resolution`.

        Raises:
            ConditioningError: no such picture exists.
        """
        return resolution

    def check_size(self, resolution: int, size: int) -> None:
        """Check that the maps keep what they are made from.

        Args:
            resolution: pixels along each side of a sample.
            size: positions along each side of the denoiser's input.

        Raises:
            ConditioningError: they would not.
        """
        self.side(resolution)

    def example(self, picture: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Return what a user would give for training pictures [B, C, R, R] in [-1, 1]: tensors [B, ...] by name.

        Args:
            picture: the training pictures, or those of `column`.
            draws: random numbers.
        """
        return {IMAGE: picture}

    @abstractmethod
    def condition(self, given: Mapping[str, Tensor], frame: Frame, draws: Draws) -> Condition:
        """Return the condition of B samples, with `concat` [B, C, h, w] and, if `takes_level`, `level` [B].

        Args:
            given: pictures [B, C, r, r] in [-1, 1] as `image`; for some kinds also `mask` [B, 1, r, r], 1 where the
                picture is made anew, or `level`, int64 [B].
            frame: the size of the maps, and the autoencoder.
            draws: random numbers.
        """

    def shown(self, given: Mapping[str, Tensor], resolution: int) -> Tensor:
        """Return what is given as pictures [B, C, R, R] in [-1, 1] of the side `resolution`, to be looked at."""
        return scaled(given[IMAGE], (resolution, resolution))

    def finish(self, pictures: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return sampled pictures [B, C, R, R], combined with what was given, in the same units; here unchanged."""
        return pictures

    def sides(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the picture that a user gives, for samples of a size (height, width).

        Raises:
            ConditioningError: no such picture exists.
        """
        return self.side(size[0]), self.side(size[1])

    def describe(self, size: tuple[int, int]) -> str:
        """Return what a user gives, as messages call it, for samples of a size (height, width)."""
        height, width = self.sides(size)
        return f"{' and '.join(f'--{name}' for name in self.given)} of {width} x {height} pixels"

    def check(self, shapes: Mapping[str, tuple[int, ...]], size: tuple[int, int], channels: int) -> None:
        """Check the pictures that a user gives.

        Args:
            shapes: shape of each of them by name: [N, C, h, w] of the image, [N, 1, h, w] of the mask.
            size: height and width of a sample in pixels.
            channels: channels C of a sample.

        Raises:
            ConditioningError: one is missing, or not wanted, or of another size.
        """
        if missing := [name for name in self.given if name not in shapes]:
            raise ConditioningError(f"condition.kind {self.kind} needs --{missing[0]}; {self.describe(size)}")
        if idle := [name for name in shapes if name not in self.given]:
            raise ConditioningError(f"--{idle[0]} is not for condition.kind {self.kind}; {self.describe(size)}")
        sides = self.sides(size)
        for name, shape in shapes.items():
            expected = (1 if name == MASK else channels, *sides)
            if shape[1:] != expected:
                raise ConditioningError(
                    f"--{name} is {_size(shape)}, but this model samples {size[1]} x {size[0]} pixels and takes "
                    f"{_size((1, *expected))}"
                )


def _size(shape: tuple[int, ...]) -> str:
    _, channels, height, width = shape
    return f"{width} x {height} pixels of {channels} {'channel' if channels == 1 else 'channels'}"


def scaled(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale pictures [B, C, r, r] to a size (h, w): bilinear and antialiased; unchanged if they have it."""
    if tuple(pictures.shape[2:]) == size:
        return pictures
    return F.interpolate(pictures, size=size, mode="bilinear", antialias=True)


def rows(given: Mapping[str, Tensor], indices: slice, total: int) -> dict[str, Tensor]:
    """Return the rows of a slice of `total` samples; a tensor with one row, for all samples, is expanded.

    Raises:
        ConditioningError: a tensor has neither one row nor `total` rows.
    """
    for name, value in given.items():
        if len(value) not in (1, total):
            raise ConditioningError(f"got {len(value)} of --{name} for {total} pictures; expected one, or one for each")
    return {name: value.expand(total, *value.shape[1:])[indices] for name, value in given.items()}


def unit(value: Tensor) -> Tensor:
    """Return pictures as floats in [-1, 1], masks (bool) as floats 0 and 1; a mask [N, R, R] gets a channel."""
    if value.dtype == torch.bool:
        return (value if value.ndim == 4 else value[:, None]).float()
    return value.to(torch.float32) / 127.5 - 1 if value.dtype == torch.uint8 else value
