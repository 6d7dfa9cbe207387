"""Latents of pictures in aspect-ratio buckets: a table whose rows have several shapes, made of one table a bucket."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.data.buckets import BucketView, buckets_of
from ldm_kit.data.images import PictureSet, digest
from ldm_kit.data.latents import Latents
from ldm_kit.data.tensor_store import RowIndex, TensorTable


@dataclass(frozen=True, eq=False)
class BucketTable:
    """A table of N rows of several shapes; those of one index are of one bucket."""

    tables: Sequence[TensorTable]  # one for each bucket, [n, V, Z, h, w]
    bucket: Tensor  # int64 [N]: index into `tables`
    row: Tensor  # int64 [N]: row in that table
    side: int  # height and width of a square latent, which `shape` states

    @property
    def shape(self) -> Sequence[int]:
        """Shape [N, V, Z, s, s], where s is the side of square latents of about the rows' area."""
        return torch.Size((len(self), *self.tables[0].shape[1:3], self.side, self.side))

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, index: RowIndex, /) -> Tensor:
        """Return the rows that an index selects, as any `TensorTable` does.

        Raises:
            ValueError: they are of several buckets.
        """
        rows, *view = index if isinstance(index, tuple) else (index,)
        buckets = self.bucket[rows].reshape(-1).unique().tolist()
        if len(buckets) > 1:
            raise ValueError("these latents are of several buckets and shapes; expected those of one")
        table, own = self.tables[buckets[0] if buckets else 0], self.row[rows]
        return table[own, view[0]] if view else table[own]


def joined_latents(
    parts: Sequence[Latents], views: Sequence[BucketView], pictures: PictureSet, *, sizes: bool = False
) -> Latents:
    """Return the latents of a whole set from those of its buckets.

    Args:
        parts: latents of the pictures of each of `views`.
        views: the buckets.
        pictures: the whole set.
        sizes: whether the latents have the sizes and crops of their pictures, as conditions.
    """
    bucket, row = torch.zeros(2, len(pictures), dtype=torch.long)
    replaced: dict[int, int] = {}
    for number, (latents, view) in enumerate(zip(parts, views, strict=True)):
        rows = torch.from_numpy(view.rows)
        bucket[rows], row[rows] = number, torch.arange(len(rows))
        replaced |= {int(rows[broken]): int(rows[other]) for broken, other in latents.replaced.items()}
    factor = views[0].size[0] // parts[0].shape[1]
    side = pictures.resolution // factor
    mean, logvar = (
        BucketTable([getattr(latents, name) for latents in parts], bucket, row, side) for name in ("mean", "logvar")
    )
    key = digest([pictures.fingerprint, *(latents.fingerprint for latents in parts)])
    groups, buckets = tuple(torch.from_numpy(view.rows) for view in views), buckets_of(pictures)
    conditions = torch.from_numpy(buckets.conditions()) if sizes and buckets is not None else None
    return Latents(mean, logvar, key, replaced, groups, conditions)
