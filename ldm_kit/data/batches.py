"""Batches of pictures by (position, index) pairs; augmentation is a function of the position."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.diffusion import rng


@dataclass(frozen=True, eq=False)
class PictureBatches:
    """Training batches of a picture set, for a DataLoader that asks with `__getitems__`.

    Args:
        pictures: the set.
        seed: of the flips.
        flip: whether pictures are mirrored at random.
    """

    pictures: PictureSet
    seed: int
    flip: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of the pictures and their preprocessing."""
        return self.pictures.fingerprint

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, samples: Sequence[tuple[int, int]], /) -> dict[str, Tensor]:
        """Return {"x": pictures [B, C, R, R] in [-1, 1], "position": int64 [B]} for (position, index) pairs."""
        x = to_unit(self.pictures.pictures([index for _, index in samples]))
        position = torch.tensor([position for position, _ in samples])
        return {"x": flipped(x, self.seed, position) if self.flip else x, "position": position}


def flips(seed: int, position: Tensor) -> Tensor:
    """Return which positions [B] are mirrored, bool [B]: each with probability 1/2, by (seed, position) alone."""
    return rng.uniform(seed, "flip", position) < 0.5


def flipped(x: Tensor, seed: int, position: Tensor) -> Tensor:
    """Mirror those pictures [B, C, H, W] left to right whose position `flips` selects."""
    return torch.where(flips(seed, position).view(-1, 1, 1, 1), x.flip(3), x)


def chunks(pictures: PictureSet, size: int) -> list[range]:
    """Return index ranges of at most `size` that cover a set."""
    return [range(i, min(i + size, len(pictures))) for i in range(0, len(pictures), size)]


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` indices, evenly spaced over a set of `total`, which is often sorted."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def chosen(total: int, most: int) -> Tensor:
    """Return the indices of a set of `total` that are measured: all, or a fixed random choice of `most`, rising.

    An index is chosen by a hash of its own, so that the choice does not follow the set's order, which is often sorted.
    """
    indices = torch.arange(total)
    if total <= most:
        return indices
    return rng.uniform(0, "chosen", indices).topk(most, largest=False).indices.sort().values
