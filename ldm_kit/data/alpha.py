"""Alpha as a weight: pictures laid over a colour, whose loss counts each pixel by how opaque it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ldm_kit.config import cache_dir
from ldm_kit.data import tensor_cache
from ldm_kit.data.caption_templates import CaptionedConfig
from ldm_kit.data.images import DerivedSet, PictureSet, Split
from ldm_kit.data.records import Record

BATCH = 256  # pictures decoded at once


class AlphaConfig(CaptionedConfig):
    """Base of the configs of data sources that read the user's pictures, which may be transparent."""

    alpha: Literal["flatten", "mask"] = Field(
        default="flatten",
        description="what transparency means. flatten: the picture is laid over `background`; mask: that too, and the "
        "loss of each pixel counts by how opaque it is",
    )

    @property
    def stored_channels(self) -> int:
        """Channels that are decoded: those of the picture, and alpha if it is a mask."""
        return int(getattr(self, "channels", 3)) + (self.alpha == "mask")

    @model_validator(mode="after")
    def _check_alpha(self) -> Self:
        if self.alpha == "mask" and getattr(self, "channels", 3) == 4:
            raise ValueError("alpha mask weighs the loss, but channels 4 keeps alpha as a channel; expected 1 or 3")
        if self.alpha == "mask" and getattr(self, "buckets", None) is not None:
            raise ValueError(
                "alpha mask weighs the loss of square pictures, not of pictures in buckets; expected one of them"
            )
        return self


@dataclass(frozen=True, eq=False)
class AlphaMasked(DerivedSet):
    """Pictures whose last channel in the set `base` is alpha, by which their loss is weighted."""

    @property
    def records(self) -> Sequence[Record]:
        """Records (name, caption, class) of the pictures, in the set's order."""
        return self.base.records

    @property
    def channels(self) -> int:
        """Channels of a picture without alpha, C: 1 grey, 3 RGB."""
        return self.base.channels - 1

    @property
    def fingerprint(self) -> str:
        """Fingerprint of `base`, whose preprocessing settings say that it has alpha."""
        return self.base.fingerprint

    def __len__(self) -> int:
        return len(self.base)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        return self.base.picture(index)[:-1]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        return self.with_alpha(indices)[0]

    def with_alpha(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the N pictures at `indices`, uint8 [N, C, R, R], and their alpha, uint8 [N, 1, R, R]."""
        pixels = self.base.pictures(indices)
        return pixels[:, :-1], pixels[:, -1:]


def masked(pictures: PictureSet, config: AlphaConfig) -> PictureSet:
    """Return a set that was decoded by a config, with its last channel as alpha if the config says so."""
    return AlphaMasked(pictures) if config.alpha == "mask" else pictures


def masked_split(split: Split, config: AlphaConfig) -> Split:
    """Return a split whose sets were decoded by a config, with their last channel as alpha if the config says so."""
    return Split(masked(split.train, config), masked(split.heldout, config), split.compositional)


def with_alpha(pictures: PictureSet, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return the N pictures at `indices`, uint8 [N, C, R, R], and their alpha, uint8 [N, 1, R, R]; None: all opaque."""
    return pictures.with_alpha(indices) if isinstance(pictures, AlphaMasked) else (pictures.pictures(indices), None)


def area_weights(pictures: PictureSet, size: tuple[int, int]) -> Tensor | None:
    """Return the weights of the elements of the pictures' latents: the mean alpha of the pixels that each covers.

    They are computed once, and cached.

    Args:
        pictures: N pictures.
        size: height and width of a latent, which divide those of a picture.

    Returns:
        float16 [N, h, w] in [0, 1]; None if the pictures have no alpha as mask.
    """
    if not isinstance(pictures, AlphaMasked):
        return None
    key = tensor_cache.key_of("alpha", pictures.fingerprint, [*size])
    compute: Any = partial(_area_weights, pictures, size)
    return tensor_cache.cached(cache_dir() / "alpha", key, compute)["weights"]


def _area_weights(pictures: AlphaMasked, size: tuple[int, int]) -> dict[str, Tensor]:
    def means(indices: Sequence[int]) -> Tensor:
        alpha = pictures.with_alpha(indices)[1].float() / 255
        return F.adaptive_avg_pool2d(alpha, size)[:, 0].half()

    total = len(pictures)
    blocks = [means(range(first, min(first + BATCH, total))) for first in range(0, total, BATCH)]
    return {"weights": torch.cat(blocks) if blocks else torch.empty(0, *size, dtype=torch.float16)}
