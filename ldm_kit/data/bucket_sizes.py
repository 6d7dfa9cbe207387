"""Aspect-ratio buckets: pictures of one area and several shapes, each cropped little, for batches of one shape each.

A bucket is a height and a width, both multiples of `step`, with about the area of a square of the data's resolution. A
picture belongs to the bucket of the nearest aspect ratio (of the least difference of logarithms), is scaled to just
cover it, and cropped to the centre. So a share 1 - min(r / r_b, r_b / r) of its area is lost, for an aspect ratio r and
that of the bucket, r_b; a picture that would lose more than `max_crop` is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from ldm_kit.config import Config

Size = tuple[int, int]  # height and width in pixels


class BucketsConfig(Config):
    """Which shapes the buckets have, and how much of a picture may be cropped."""

    step: int = Field(default=64, ge=1, description="pixels, of which height and width of each bucket are multiples")
    max_ratio: float = Field(default=2.0, ge=1, description="greatest ratio of the longer to the shorter side")
    max_crop: float = Field(
        default=0.25, ge=0, lt=1, description="share of a picture's area; those that would lose more are left out"
    )

    def sizes(self, resolution: int) -> tuple[Size, ...]:
        """Return the (height, width) of every bucket by rising width / height, for squares of a side `resolution`.

        Raises:
            ValueError: the side is no multiple of `step`.
        """
        if resolution % self.step:
            raise ValueError(
                f"data.buckets.step is {self.step}, which does not divide data.resolution {resolution}; the bucket of "
                "square pictures would be missing"
            )
        sizes: set[Size] = set()
        for width in range(self.step, int(resolution * self.max_ratio**0.5) + self.step, self.step):
            height = max(1, int(resolution**2 / width / self.step + 0.5)) * self.step
            if max(height, width) <= self.max_ratio * min(height, width):
                sizes |= {(height, width), (width, height)}
        return tuple(sorted(sizes, key=lambda size: size[1] / size[0]))


class BucketedConfig(Config):
    """Base of the configs of data sources whose pictures may be put into buckets."""

    buckets: BucketsConfig | None = Field(
        default=None, description="aspect-ratio buckets in place of square crops; null: squares"
    )


class PictureSettings(Protocol):
    """How a data source decodes pictures, and its buckets."""

    @property
    def resolution(self) -> int: ...
    @property
    def channels(self) -> Any: ...
    @property
    def background(self) -> str: ...
    @property
    def pixel_limit(self) -> int: ...
    @property
    def path(self) -> Path: ...
    @property
    def buckets(self) -> BucketsConfig | None: ...


class Buckets(NamedTuple):
    """The buckets of N pictures."""

    sizes: Sequence[Size]  # height and width of each bucket
    numbers: np.ndarray[Any, Any]  # int64 [N], the bucket of each picture
    crops: np.ndarray[Any, Any]  # float64 [N], the share of each picture's area that is cropped
    originals: np.ndarray[Any, Any]  # int64 [N, 2], height and width of each image file

    def take(self, rows: np.ndarray[Any, Any]) -> "Buckets":
        """Return the buckets of the pictures at `rows`."""
        return Buckets(self.sizes, self.numbers[rows], self.crops[rows], self.originals[rows])

    def conditions(self) -> np.ndarray[Any, Any]:
        """Return each picture's sizes and crop, as SDXL is conditioned on them: float32 [N, 6].

        They are height and width of the image file, top and left of the crop in pixels of the scaled image (a whole
        number, rounded down), and height and width of the picture.
        """
        targets = np.array(self.sizes)[self.numbers]
        scale = (targets / self.originals).max(1, keepdims=True)
        corners = np.floor((self.originals * scale - targets) / 2 + 1e-9)
        return np.concatenate([self.originals, corners, targets], 1).astype(np.float32)

    def counts(self) -> list[tuple[int, int, int]]:
        """Return height, width and number of pictures of each bucket."""
        numbers = np.bincount(self.numbers, minlength=len(self.sizes)).tolist()
        return [(*size, number) for size, number in zip(self.sizes, numbers, strict=True)]

    def report(self) -> str:
        """Return a sentence: the pictures of each bucket that has some, and the share of the area that is cropped."""
        listing = [f"{width} x {height}: {number}" for height, width, number in self.counts() if number]
        return (
            f"{len(listing)} buckets (width x height: pictures): {', '.join(listing)}; cropped "
            f"{self.crops.mean():.1%} of the area on average, {self.crops.max():.1%} at most"
        )


def assign(originals: np.ndarray[Any, Any], sizes: Sequence[Size]) -> Buckets:
    """Return the bucket of the nearest aspect ratio for pictures of N heights and widths, `originals` int64 [N, 2].

    `sizes` are the buckets' heights and widths by rising width / height.
    """
    ratios = np.log([width / height for height, width in sizes])
    own = np.log(originals[:, 1] / originals[:, 0])
    numbers = np.searchsorted((ratios[1:] + ratios[:-1]) / 2, own)
    return Buckets(sizes, numbers, 1 - np.exp(-np.abs(own - ratios[numbers])), originals)
