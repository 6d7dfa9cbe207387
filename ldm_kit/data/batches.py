"""Batches of pictures addressed by (position, index), with augmentation that belongs to the position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.diffusion import rng


@dataclass(frozen=True, eq=False)
class PictureBatches:
    """A picture set as a source of training batches for a DataLoader that asks with `__getitems__`."""

    pictures: PictureSet
    seed: int
    flip: bool = False

    @property
    def fingerprint(self) -> str:
        """Of the pictures and their preprocessing."""
        return self.pictures.fingerprint

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """{"x": pictures [B, C, R, R] in [-1, 1], "position": [B] int64} for (position, index) pairs."""
        x = to_unit(self.pictures.pictures([index for _, index in places]))
        position = torch.tensor([position for position, _ in places])
        return {"x": flipped(x, self.seed, position) if self.flip else x, "position": position}


def flips(seed: int, position: Tensor) -> Tensor:
    """Which positions [B] are mirrored, bool [B]: a fair coin each."""
    return rng.uniform(seed, "flip", position) < 0.5


def flipped(x: Tensor, seed: int, position: Tensor) -> Tensor:
    """Pictures [B, C, H, W], mirrored left to right where their position says so."""
    return torch.where(flips(seed, position).view(-1, 1, 1, 1), x.flip(3), x)


def chunks(pictures: PictureSet, size: int) -> list[range]:
    """Index ranges that cover a set, `size` at a time."""
    return [range(i, min(i + size, len(pictures))) for i in range(0, len(pictures), size)]


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, evenly over a set of `total`: sets are often sorted, so the first few would mislead."""
    count = min(total, count)
    return [i * total // count for i in range(count)]
