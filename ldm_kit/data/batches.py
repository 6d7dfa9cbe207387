"""Training batches of pictures, and choices of pictures to measure or show.

A sample is requested as (position, index): the number of samples that training has seen before it, and the picture's
index in the set. Augmentation depends on the seed and the position alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.data.alpha import with_alpha
from ldm_kit.data.images import PictureSet, to_unit
from ldm_kit.diffusion import rng


@dataclass(frozen=True, eq=False)
class PictureBatches:
    """Training batches of a picture set; a DataLoader gets a whole batch by one call of `__getitems__`.

    Args:
        pictures: the picture set.
        seed: seed of the random mirroring.
        flip: whether pictures are mirrored left to right at random.
    """

    pictures: PictureSet
    seed: int
    flip: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the training data: the pictures and their preprocessing."""
        return self.pictures.fingerprint

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, samples: Sequence[tuple[int, int]], /) -> dict[str, Tensor]:
        """Return the batch of B samples, each given as (position in training, index of a picture).

        The position is the number of samples that training has seen before this one.

        Returns:
            {"x": pictures [B, C, R, R] in [-1, 1] (C channels, R x R pixels), "position": int64 [B]}, and "weight"
            [B, 1, R, R] in [0, 1], by which the loss of each pixel counts, if the pictures have alpha as mask.
        """
        pixels, alpha = with_alpha(self.pictures, [index for _, index in samples])
        position = torch.tensor([position for position, _ in samples])
        batch = {"x": to_unit(pixels), **({} if alpha is None else {"weight": alpha.float() / 255})}
        if self.flip:
            batch = {name: flipped(value, self.seed, position) for name, value in batch.items()}
        return {**batch, "position": position}


def flips(seed: int, position: Tensor) -> Tensor:
    """Return bool [B]: whether the picture at each training position in `position` [B] is mirrored.

    The probability is 1/2; the choice is a hash of (seed, position) alone. A picture's position is the number of
    samples that training has seen before it.
    """
    return rng.uniform(seed, "flip", position) < 0.5


def flipped(x: Tensor, seed: int, position: Tensor) -> Tensor:
    """Return the pictures x [B, C, H, W], each mirrored left to right with probability 1/2.

    `position` int64 [B] is the number of samples that training has seen before each picture. The choice is a
    hash of (seed, position) alone.
    """
    return torch.where(flips(seed, position).view(-1, 1, 1, 1), x.flip(3), x)


def chunks(pictures: PictureSet, size: int) -> list[range]:
    """Divide the indices of a picture set into consecutive ranges of at most `size` indices."""
    return [range(i, min(i + size, len(pictures))) for i in range(0, len(pictures), size)]


def spread(total: int, count: int) -> list[int]:
    """Return `count` indices (all, if fewer) evenly spaced in 0..total - 1, to cover a data set sorted by class."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def chosen(total: int, most: int) -> Tensor:
    """Return the indices, int64 and increasing, of those of `total` pictures that an evaluation measures.

    All are measured if there are at most `most`; else `most` of them, chosen by a hash of each index: a random choice,
    always the same, which does not follow the order of the set (often sorted by class or name).
    """
    indices = torch.arange(total)
    if total <= most:
        return indices
    return rng.uniform(0, "chosen", indices).topk(most, largest=False).indices.sort().values
