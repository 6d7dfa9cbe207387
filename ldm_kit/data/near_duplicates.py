"""Near-duplicates between the training and the held-out pictures of a data set, which make held-out figures too good.

Pictures are shrunk to 16 x 16 pixels in colour, and two count as near-duplicates if the root mean square difference of
these is at most 1.5 of 255 levels: that of a picture and its copy as JPEG of high quality, or in another size. A
mirrored picture, another crop, or another brightness is not found. A drawing with one changed part is another picture:
skin tones of OpenMoji and expressions of faces differ by more.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_kit.config import cache_dir
from ldm_kit.data.batches import chosen
from ldm_kit.data.buckets import square_split
from ldm_kit.data.images import PictureSet, Split
from ldm_kit.data.levels import HIGHEST
from ldm_kit.data.tensor_cache import cached, key_of

SIDE = 16  # pixels to which pictures are shrunk
MOST_DIFFERENT = 1.5  # root mean square difference, of 255 levels, up to which shrunk pictures are near-duplicates
MOST_HELDOUT, MOST_TRAIN = 1000, 20_000  # of larger sets a fixed random choice is compared
BATCH = 512
CODE_VERSION = 1  # raise it whenever results change: cached ones are then not read


class Leaks(NamedTuple):
    """Held-out pictures that have a near-duplicate among the training pictures."""

    pairs: list[tuple[str, str]]  # names of a held-out picture and of the training picture that is nearest to it
    heldout: int  # number of held-out pictures that were compared
    train: int  # number of training pictures that they were compared with

    def sentence(self) -> str:
        """Return a warning with the number of pairs and the first three; "" if there are none."""
        if not self.pairs:
            return ""
        first = "; ".join(f"{heldout} is like {train}" for heldout, train in self.pairs[:3])
        more = "; ..." if len(self.pairs) > 3 else ""
        return (
            f"{len(self.pairs)} of {self.heldout} held-out pictures have a near-duplicate among {self.train} training "
            f"pictures, which makes held-out figures too good: {first}{more}"
        )


def find_leaks(split: Split) -> Leaks:
    """Find held-out pictures with a near-duplicate among the training pictures; the result is cached on disk.

    At most 1,000 held-out and 20,000 training pictures are compared; of larger sets a fixed random choice.

    Raises:
        UserError: a picture cannot be read.
    """
    split = square_split(split)
    heldout, train = chosen(len(split.heldout), MOST_HELDOUT), chosen(len(split.train), MOST_TRAIN)
    if not len(heldout) or not len(train):
        return Leaks([], len(heldout), len(train))
    key = key_of("near duplicates", CODE_VERSION, SIDE, MOST_DIFFERENT, len(heldout), len(train),
                 split.train.fingerprint, split.heldout.fingerprint)  # fmt: skip

    def compute() -> dict[str, Tensor]:
        pairs = near_pairs(_shrunk(split.heldout, heldout), _batches(split.train, train))
        return {"pairs": torch.stack([heldout[pairs[:, 0]], train[pairs[:, 1]]], 1)}

    pairs = cached(cache_dir() / "duplicates", key, compute)["pairs"].tolist()
    names = [(split.heldout.records[i].name, split.train.records[j].name) for i, j in pairs]
    return Leaks(names, len(heldout), len(train))


def near_pairs(heldout: Tensor, training: Iterable[Tensor]) -> Tensor:
    """Return which shrunk pictures have a near-duplicate, and the nearest one: int64 [P, 2], indices of each pair.

    Args:
        heldout: shrunk held-out pictures, float32 [N, D], of 0..255.
        training: those of training pictures, in parts [m, D].
    """
    nearest, indices, first = torch.full((len(heldout),), torch.inf), torch.zeros(len(heldout)).long(), 0
    for batch in training:
        distances, closest = (torch.cdist(heldout, batch) / heldout.shape[1] ** 0.5).min(1)
        indices = torch.where(distances < nearest, closest + first, indices)
        nearest, first = torch.minimum(nearest, distances), first + len(batch)
    rows = (nearest <= MOST_DIFFERENT).nonzero().flatten()
    return torch.stack([rows, indices[rows]], 1)


def _batches(pictures: PictureSet, rows: Tensor) -> Iterable[Tensor]:
    return (_shrunk(pictures, batch) for batch in rows.split(BATCH))


def _shrunk(pictures: PictureSet, rows: Tensor) -> Tensor:
    """Return the pictures at `rows` [N], shrunk to at most 16 x 16 pixels: float32 [N, D], of 0..255."""
    parts: list[Tensor] = []
    for batch in rows.split(BATCH):
        levels = pictures.pictures(batch.tolist())
        x = levels.float() * (255 / HIGHEST[levels.dtype])
        parts.append((F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] > SIDE else x).flatten(1))
    return torch.cat(parts)
