"""Pictures that a column of the metadata names, one for each picture of a folder: depth, a sketch, a layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.data.folder import FolderConfig
from ldm_kit.data.folder_index import resolve_inside
from ldm_kit.data.image_files import load_image
from ldm_kit.data.images import DerivedSet, PictureSet, digest
from ldm_kit.data.records import Record


@dataclass(frozen=True, eq=False)
class ColumnPictures(DerivedSet):
    """The pictures that a column names, in the order, size and channels of the set `base`."""

    config: FolderConfig  # the folder, and how its pictures are read
    files: Sequence[str]  # the column's value of each picture: a file relative to the folder
    fingerprint: str  # sha256 (hex) of the set's fingerprint and of the names and sizes of the files

    @property
    def records(self) -> Sequence[Record]:
        """Records of the pictures of `base`."""
        return self.base.records

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> Tensor:
        """Return the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels."""
        config = self.config
        path = resolve_inside(config.path, self.files[index])
        return load_image(path, config.resolution, config.channels, config.background, config.pixel_limit)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels."""
        return torch.stack([self.picture(int(index)) for index in indices])


def column_pictures(base: PictureSet, column: str, config: object) -> ColumnPictures:
    """Return the pictures that a column of the metadata names.

    Args:
        base: the run's pictures.
        column: name of the column.
        config: the config of the run's data.

    Raises:
        UserError: the data are no folder, or a picture lacks a value, or the file that it names.
    """
    if not isinstance(config, FolderConfig):
        raise UserError(f"condition.column {column} names files of a folder; expected data.source folder")
    files = [record.fields.get(column, "") for record in base.records]
    if lacking := [record.name for record, file in zip(base.records, files, strict=True) if not file]:
        more = f", and {len(lacking) - 1:,} more like it" if len(lacking) > 1 else ""
        raise UserError(
            f"condition.column is {column}, but the metadata of {lacking[0]} have no such value{more}; expected a file "
            "for every picture"
        )
    sizes = [str(_size(config, name, column)) for name in files]
    return ColumnPictures(base, config, files, digest([base.fingerprint, column, *files, *sizes]))


def _size(config: FolderConfig, name: str, column: str) -> int:
    """Return the bytes of a file that the column names; raises UserError if it does not exist."""
    path = resolve_inside(config.path, name)
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{column} names {path}, which cannot be read: {error.strerror}") from None
