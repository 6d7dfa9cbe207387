"""Ranges of values: what the lowest and the highest level of a picture stand for, in the units of the data.

Data of 16 bits or floats (microscopy, satellite bands, CT, depth) are stored as 65536 levels between two values that
the config states (`data.range`), or that are measured over the training pictures. Values outside are clipped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError
from torch import Tensor

from ldm_kit.config import Config, UserError
from ldm_kit.data.levels import HIGHEST

FILE = "value_range.json"  # in the folder of a model of such data
MOST_CHANNELS = 16
_EXPECTED = (
    "expected [low, high], the values that become -1 and 1, with low below high; a list of such pairs, one for each "
    "channel; or {percentiles: [0.5, 99.5]}"
)


@dataclass(frozen=True)
class ValueRange:
    """The values, in the units of the data, that become -1 and 1: one pair for all channels, or one for each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, pairs: Sequence[Sequence[float]]) -> "ValueRange":
        """Return the range of (low, high) pairs, of all channels or of each."""
        low, high = zip(*pairs, strict=True)
        return cls(tuple(map(float, low)), tuple(map(float, high)))

    @property
    def pairs(self) -> list[list[float]]:
        """Low and high of all channels, or of each, as JSON values."""
        return [[*pair] for pair in zip(self.low, self.high, strict=True)]

    def __str__(self) -> str:
        texts = [f"[{low:.7g}, {high:.7g}]" for low, high in self.pairs]
        return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"

    def shares(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return values [C, H, W] as shares of the range, float64: 0 for low and 1 for high, not clipped."""
        low, high = (np.array(bound, np.float64).reshape(-1, 1, 1) for bound in (self.low, self.high))
        return (values.astype(np.float64) - low) / (high - low)

    def levels(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return values [C, H, W] as levels, uint16 0..65535, rounded and clipped."""
        return as_levels(self.shares(values))

    def values(self, pictures: Tensor) -> Tensor:
        """Return pictures in the units of the data, float32 [..., C, H, W]; `pictures` are levels in that shape."""
        low, high = (torch.tensor(bound, dtype=torch.float64).view(-1, 1, 1) for bound in (self.low, self.high))
        shares = (pictures.double() / HIGHEST[pictures.dtype]).cpu()
        return (low + shares * (high - low)).float()


def as_levels(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return shares of a range, of any shape, as levels, uint16 0..65535, rounded and clipped."""
    return np.rint(shares.astype(np.float64).clip(0, 1) * HIGHEST[torch.uint16]).astype(np.uint16)


def write_range(folder: Path, values: ValueRange | None) -> None:
    """Write the range of a model's pictures into its folder; None: they have 8 bits, and the folder gets no file."""
    if values is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    text = json.dumps({"range": values.pairs, "levels": HIGHEST[torch.uint16] + 1}, indent=2)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def read_range(folder: Path) -> ValueRange | None:
    """Read the range of a model's pictures from its folder; None: they have 8 bits, and no units.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return ValueRange.of(range_pairs(json.loads(path.read_text(encoding="utf-8"))["range"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} states no range of values; restore it from where the model was trained") from None


class Percentiles(Config):
    """A range that is measured: two percentiles of the training pictures' values, of each channel."""

    percentiles: tuple[float, float] = Field(description="percentiles that become -1 and 1, such as [0.5, 99.5]")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must rise, and lie in 0..100")
        return self


def range_pairs(value: Any) -> tuple[tuple[float, float], ...]:
    """Return low and high of all channels or of each; ValueError: the value is no range."""
    pairs = [value] if isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple) else value
    good = isinstance(pairs, list | tuple) and 1 <= len(pairs) <= MOST_CHANNELS
    if not good or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"got {value!r:.60}; {_EXPECTED}")
    numbers = [number for pair in pairs for number in pair]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"got {value!r:.60}; {_EXPECTED}")
    if not all(map(np.isfinite, numbers)):
        raise PydanticKnownError("finite_number")
    if not all(low < high for low, high in pairs):
        raise ValueError(f"got {value!r:.60}; {_EXPECTED}")
    return tuple((float(low), float(high)) for low, high in pairs)


def _parsed(value: Any) -> Any:
    if value is None or isinstance(value, Percentiles):
        return value
    if isinstance(value, dict):
        try:
            first, last = value["percentiles"]
            return Percentiles(percentiles=(first, last)) if len(value) == 1 else range_pairs(value)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"got {value!r:.60}; {_EXPECTED}") from None
    return range_pairs(value)


Range = Annotated[tuple[tuple[float, float], ...] | Percentiles | None, BeforeValidator(_parsed)]


class RangedConfig(Config):
    """Base of the configs of data sources whose pictures may have any channels, 16 bits, or floats."""

    channels: int = Field(
        default=3, ge=1, le=MOST_CHANNELS, description="1 grey, 3 RGB, 4 RGBA; with `range`, any number up to 16"
    )
    range: Range = Field(
        default=None,
        description="values that become -1 and 1: [low, high], a pair for each channel, or {percentiles: [0.5, 99.5]} "
        "of the training pictures; files are then .npy, .tif, .tiff or .png of that many channels, of up to 16 bits or "
        "floats; null: pictures of 8 bits",
    )

    @property
    def value_range(self) -> ValueRange | None:
        """The range; None: there is none, or it is not measured yet."""
        return ValueRange.of(self.range) if isinstance(self.range, tuple) else None

    @property
    def pixel_dtype(self) -> torch.dtype:
        """Type of the pixels in memory."""
        return torch.uint8 if self.range is None else torch.uint16

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range is None:
            if self.channels not in (1, 3, 4):
                raise ValueError(
                    f"channels {self.channels} needs data.range, the values that become -1 and 1, such as [0, 65535] "
                    "of 16 bits or [0, 255] of 8; without it channels are 1 (grey), 3 (RGB) or 4 (RGBA)"
                )
            return self
        if isinstance(self.range, tuple) and len(self.range) not in (1, self.channels):
            raise ValueError(f"range has {len(self.range)} pairs, but there are {self.channels} channels; {_EXPECTED}")
        for name, free in (("alpha", "flatten"), ("buckets", None)):
            if getattr(self, name, free) != free:
                raise ValueError(f"{name} is for pictures of 8 bits, and range for values of any kind; leave one out")
        return self


def value_range_of(pictures: object) -> ValueRange | None:
    """Return what the levels of a picture set stand for; None: its pictures have 8 bits, and no units."""
    return getattr(pictures, "value_range", None)


def pixel_dtype(pictures: object) -> torch.dtype:
    """Return the type of a picture set's pixels: uint16 if they stand for values of a range, else uint8."""
    return torch.uint8 if value_range_of(pictures) is None else torch.uint16


def check_same_range(name: str, expected: ValueRange | None, pictures: object) -> None:
    """Check that pictures have the range of a model.

    Args:
        name: the model, for the message, such as "the autoencoder in runs/ae".
        expected: the model's range; None: it is for pictures of 8 bits.
        pictures: the picture set.

    Raises:
        UserError: the ranges differ.
    """
    given = value_range_of(pictures)
    if given == expected:
        return
    if expected is None:
        raise UserError(f"{name} is for pictures of 8 bits, but data.range is {given}; expected no data.range")
    raise UserError(
        f"{name} is for values in {expected}, but "
        + ("data.range is left out" if given is None else f"data.range is {given}")
        + f"; expected data.range: {expected}"
    )
