"""Training batches of pictures, requested by pairs of a position in training and an index in the picture set.

The position counts all samples that training has seen; augmentation depends on the position alone.
"""

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
        """Return the batch for B pairs of a position in training and a picture's index.

        The position is the number of samples that training has seen before this one.

        Returns:
            {"x": pictures [B, C, R, R] in [-1, 1], "position": int64 [B]}.
        """
        x = to_unit(self.pictures.pictures([index for _, index in samples]))
        position = torch.tensor([position for position, _ in samples])
        return {"x": flipped(x, self.seed, position) if self.flip else x, "position": position}


def flips(seed: int, position: Tensor) -> Tensor:
    """Return bool [B]: whether the picture at each training position in `position` [B] is mirrored.

    The probability is 1/2; the choice is a hash of (seed, position) alone. A picture's position is the number of
    samples that training has seen before it.
    """
    return rng.uniform(seed, "flip", position) < 0.5


def flipped(x: Tensor, seed: int, position: Tensor) -> Tensor:
    """Mirror left to right those of the pictures x [B, C, H, W] for which a hash of (`seed`, position) says so.

    The probability is 1/2. `position` [B] has the number of samples that training has seen before each picture.
    """
    return torch.where(flips(seed, position).view(-1, 1, 1, 1), x.flip(3), x)


def chunks(pictures: PictureSet, size: int) -> list[range]:
    """Divide the indices of a picture set into consecutive ranges of at most `size` indices."""
    return [range(i, min(i + size, len(pictures))) for i in range(0, len(pictures), size)]


def spread(total: int, count: int) -> list[int]:
    """Return at most `count` indices, evenly spaced over 0 to total - 1, as data sets are often sorted by class."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def chosen(total: int, most: int) -> Tensor:
    """Return the indices, out of 0 to total - 1, of the pictures to measure: all, or a fixed random choice of `most`.

    They are in increasing order. The choice is by a hash of each index, so it does not follow the order of the set,
    which is often sorted by class or name.
    """
    indices = torch.arange(total)
    if total <= most:
        return indices
    return rng.uniform(0, "chosen", indices).topk(most, largest=False).indices.sort().values
