"""Measure the range of values of a data set: percentiles of its training pictures, of each channel."""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import peers, tensor_cache
from ldm_kit.data.batches import chosen
from ldm_kit.data.folder_index import resolve_inside
from ldm_kit.data.image_files import BadPicture
from ldm_kit.data.images import PictureSet
from ldm_kit.data.records import names_of
from ldm_kit.data.value_files import Array, load_values

VALUES = 2**27  # most values that are measured together; of larger sets a fixed random choice of pictures is
CODE_VERSION = 1  # raise it whenever results change: cached ones are then not read
_log = logging.getLogger("ldm_kit.data")


class ValueSettings(Protocol):
    """How a folder of values is read."""

    @property
    def path(self) -> Path: ...
    @property
    def resolution(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def pixel_limit(self) -> int: ...


def measured_range(
    train: PictureSet, percentiles: tuple[float, float], settings: ValueSettings
) -> tuple[tuple[float, float], ...]:
    """Return two percentiles of the training pictures' values, of each channel; they are measured once, and cached.

    Pictures are scaled and cropped before. Values between two data are interpolated linearly, as numpy does.

    Args:
        train: the training pictures; a picture that is repeated counts once.
        percentiles: the lower and the upper one, in 0..100.
        settings: the folder, and how its files are read.

    Raises:
        UserError: both percentiles of a channel are equal.
    """
    names = sorted({*names_of(train.records)})
    rows = chosen(len(names), max(1, VALUES // (settings.channels * settings.resolution**2))).tolist()

    def compute() -> dict[str, Tensor]:
        pictures = [*peers.in_threads(lambda row: _values(names[row], settings), rows)]
        return {"range": torch.from_numpy(of_pictures([each for each in pictures if each is not None], percentiles))}

    key = tensor_cache.key_of("range", CODE_VERSION, train.fingerprint, len(rows), [*percentiles])
    pairs = tensor_cache.cached(cache_dir() / "ranges", key, compute)["range"].tolist()
    for number, (low, high) in enumerate(pairs, 1):
        if not low < high:
            raise UserError(
                f"both percentiles {percentiles[0]:g} and {percentiles[1]:g} of channel {number} in {settings.path} "
                f"are {low:g}; expected data.range in numbers, or percentiles that differ"
            )
    shown = ", ".join(f"[{low:.6g}, {high:.6g}]" for low, high in pairs)
    _log.warning("%s: percentiles %g and %g of %d training pictures, the data.range: %s",
                 settings.path, *percentiles, len(rows), shown)  # fmt: skip
    return tuple((low, high) for low, high in pairs)


def of_pictures(pictures: list[Array], percentiles: tuple[float, float]) -> Array:
    """Return percentiles of the values of pictures [C, R, R], of each channel: float64 [C, 2]."""
    channels = range(len(pictures[0]))
    return np.stack(
        [np.percentile(np.stack([p[c] for p in pictures]).astype(np.float64), percentiles) for c in channels]
    )


def _values(name: str, settings: ValueSettings) -> Array | None:
    try:
        path = resolve_inside(settings.path, name)
        return load_values(path, settings.resolution, settings.channels, settings.pixel_limit)
    except BadPicture:  # counted, and replaced, where the set is read
        return None
