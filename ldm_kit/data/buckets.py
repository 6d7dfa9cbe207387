"""Picture sets in aspect-ratio buckets (`bucket_sizes`): pictures of several shapes, decoded on demand."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import peers, tensor_cache
from ldm_kit.data.batches import chunks
from ldm_kit.data.bucket_sizes import BucketedConfig as BucketedConfig
from ldm_kit.data.bucket_sizes import Buckets, PictureSettings, Size, assign
from ldm_kit.data.folder_index import resolve_inside
from ldm_kit.data.image_files import Encoded, image_size, load_image
from ldm_kit.data.images import DerivedSet, PictureSet, Split, Subset, digest, subset
from ldm_kit.data.left_out import listed
from ldm_kit.data.readable import ReadablePictures
from ldm_kit.data.records import Record, names_of

_ROUND = 1024  # pictures whose headers are read at once
_log = logging.getLogger("ldm_kit.data")


@dataclass(frozen=True)
class FolderFiles:
    """The files of the pictures in a folder, by their index."""

    root: Path
    records: Sequence[Record]

    def __call__(self, index: int) -> Path:
        """Return the file of the picture at `index`; raises BadPicture if it leads outside of the folder."""
        return resolve_inside(self.root, self.records[index].name)


@dataclass(frozen=True)
class ArchiveFiles:
    """The bytes of the pictures in archives, by their index; `pictures` are `archives.ArchivedPictures`."""

    pictures: Any

    def __call__(self, index: int) -> Encoded:
        """Read the image file of the picture at `index`."""
        file, *location = self.pictures.locations[index].tolist()
        contents = self.pictures.reader.read(self.pictures.files[file], (location[0], location[1]))
        return Encoded(self.pictures.records[index].name, contents)


@dataclass(frozen=True, eq=False)
class BucketedPictures(DerivedSet):
    """Pictures at the size of their buckets, decoded on demand; those of one call of `pictures` are of one bucket."""

    buckets: Buckets
    files: Callable[[int], Path | Encoded]  # the image file of each picture, or its bytes
    settings: PictureSettings
    fingerprint: str

    @property
    def records(self) -> Sequence[Record]:
        """Records (name, caption, class) of the pictures."""
        return self.base.records

    def __len__(self) -> int:
        return len(self.base)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, h, w], of the height h and width w of its bucket."""
        of, size = self.settings, self.buckets.sizes[self.buckets.numbers[index]]
        return load_image(self.files(index), size, of.channels, of.background, of.pixel_limit)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, which are of one bucket, uint8 [N, C, h, w].

        Raises:
            ValueError: they are of several buckets.
        """
        rows = [int(i) for i in indices]
        if len({int(number) for number in self.buckets.numbers[rows]}) > 1:
            raise ValueError("these pictures are of several buckets and shapes; expected those of one")
        if not rows:
            return torch.empty(0, self.channels, self.resolution, self.resolution, dtype=torch.uint8)
        return torch.stack([self.picture(row) for row in rows])


def bucketed(pictures: PictureSet, config: PictureSettings, files: Callable[[int], Path | Encoded]) -> PictureSet:
    """Return pictures at the sizes of the config's buckets; as they are if it has none.

    Args:
        pictures: square pictures.
        config: the data source's settings.
        files: returns the image file of the picture at an index, or its bytes.

    Raises:
        UserError: the buckets' step does not divide the resolution.
        BadPicture: the header of an image file cannot be read.
    """
    if config.buckets is None:
        return pictures
    try:
        sizes = config.buckets.sizes(config.resolution)
    except ValueError as error:
        raise UserError(str(error)) from None
    buckets = assign(_original_sizes(pictures, config, files), sizes)
    fingerprint = digest(["buckets", "code=1", pictures.fingerprint, str(sizes)])
    return BucketedPictures(pictures, buckets, files, config, fingerprint)


def within_crop(split: Split, config: PictureSettings) -> Split:
    """Return a split without the pictures that would lose a greater share of their area than the config allows.

    A warning names them. A split without buckets is returned as it is.

    Raises:
        UserError: no training picture is left.
    """
    settings = config.buckets
    if settings is None:
        return split
    limit = settings.max_crop
    reason = f"as more than {limit:.0%} of their area would be cropped (data.buckets.max_crop)"
    sets: list[PictureSet | None] = []
    for pictures in split:
        buckets = buckets_of(pictures)
        if pictures is None or buckets is None or (fits := buckets.crops <= limit + 1e-9).all():
            sets.append(pictures)
            continue
        names = [name for name, fit in zip(names_of(pictures.records), fits, strict=True) if not fit]
        if pictures is split.train and not fits.any():
            raise UserError(f"all {len(names)} training pictures in {config.path} are left out, {reason}")
        _log.warning("%s: %d pictures are left out, %s: %s", config.path, len(names), reason, listed(names))
        sets.append(subset(pictures, np.flatnonzero(fits)))
    train, heldout, compositional = sets
    assert train is not None
    assert heldout is not None
    return Split(train, heldout, compositional)


def _original_sizes(
    pictures: PictureSet, config: PictureSettings, files: Callable[[int], Path | Encoded]
) -> np.ndarray[Any, Any]:
    """Return height and width of the image files, int64 [N, 2]; those of a set are read once, and cached on disk."""

    def read() -> dict[str, Tensor]:
        rows: list[Size] = []
        for indices in chunks(pictures, _ROUND):
            rows += peers.in_threads(lambda index: image_size(files(index), config.pixel_limit), indices)
        return {"sizes": torch.tensor(rows)}

    key = tensor_cache.key_of("image sizes", pictures.fingerprint)
    return tensor_cache.cached(cache_dir() / "sizes", key, read)["sizes"].numpy()


def buckets_of(pictures: PictureSet | None) -> Buckets | None:
    """Return the buckets of a picture set, also of a view of one; None: all its pictures are squares."""
    match pictures:
        case BucketedPictures():
            return pictures.buckets
        case Subset():
            base = buckets_of(pictures.base)
            return None if base is None else base.take(pictures.indices)
        case ReadablePictures():
            return buckets_of(pictures.base)
        case _:
            return None


class BucketView(NamedTuple):
    """The pictures of one bucket."""

    size: Size
    rows: np.ndarray[Any, Any]  # int64 [n], their indices in the whole set
    pictures: PictureSet

    @property
    def name(self) -> str:
        """Width and height, such as 80x56."""
        return f"{self.size[1]}x{self.size[0]}"


def bucket_views(pictures: PictureSet) -> list[BucketView]:
    """Return a view for each bucket that has pictures; an empty list if the set has no buckets."""
    buckets = buckets_of(pictures)
    if buckets is None:
        return []
    rows_by_bucket = ((size, np.flatnonzero(buckets.numbers == k)) for k, size in enumerate(buckets.sizes))
    return [BucketView(size, rows, _view(pictures, rows)) for size, rows in rows_by_bucket if len(rows)]


def _view(pictures: PictureSet, rows: np.ndarray[Any, Any]) -> PictureSet:
    if isinstance(pictures, ReadablePictures):  # replaces a broken picture by one of its own bucket
        return ReadablePictures(subset(pictures.base, rows), pictures.settings)
    return subset(pictures, rows)


def squares(pictures: PictureSet) -> PictureSet:
    """Return the same pictures as square crops, if they are in buckets; as they are if not."""
    if buckets_of(pictures) is None:
        return pictures
    match pictures:
        case BucketedPictures():
            return pictures.base
        case Subset():
            return subset(squares(pictures.base), pictures.indices)
        case ReadablePictures():
            return ReadablePictures(squares(pictures.base), pictures.settings)
        case _:
            raise TypeError(f"{type(pictures).__name__} has no buckets")


def square_split(split: Split) -> Split:
    """Return a split with all its pictures as square crops."""
    other = split.compositional
    return Split(squares(split.train), squares(split.heldout), None if other is None else squares(other))
