"""A folder of the user's own pictures: metadata.jsonl (Hugging Face's imagefolder), class folders, or plain images.

metadata.jsonl holds one object a line: file_name (relative to the folder), text, an optional label, and any further
fields, kept as strings. Without it, sub-folders are classes (the caption is the folder's name), or the images lie in
the folder itself. Every file is checked once when the folder is loaded: bad ones are logged by name, counted and
skipped, and too many of them stop the run. Small sets are held decoded in memory, larger ones decoded on demand.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config
from ldm_kit.data.bad_pictures import check_bad_share, skip_or_raise
from ldm_kit.data.colour_profiles import ProfileCounts
from ldm_kit.data.folder_index import Entry, folder_entries, resolve_inside
from ldm_kit.data.image_files import PIXEL_LIMIT, BadPicture, Colour, check_header, load_image
from ldm_kit.data.images import InMemory, PictureSet, Record, Split, class_names, digest, heldout_split


class FolderConfig(Config):
    """A folder of the user's own pictures."""

    source: Literal["folder"] = Field(default="folder", description="which data: a folder of pictures")
    path: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        description="the folder: metadata.jsonl with images, one sub-folder per class, or plain images"
    )
    resolution: int = Field(
        default=32, ge=8, le=2048, description="pixels along each side after scaling and centre crop"
    )
    channels: Literal[1, 3, 4] = Field(default=3, description="1 grey, 3 RGB, 4 RGBA")
    background: Colour = Field(default="white", description="colour laid under transparent pictures: a name or #rrggbb")
    heldout: float = Field(default=0.05, ge=0, lt=1, description="share held out, by a hash of each picture's name")
    on_bad: Literal["skip", "raise"] = Field(
        default="skip", description="what to do with a picture that cannot be read"
    )
    max_bad_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="stop if more than this share is bad; above 0, one bad picture is always allowed",
    )
    pixel_limit: int = Field(
        default=PIXEL_LIMIT, ge=1, le=89_478_485, description="most pixels an image's header may promise, checked first"
    )
    memory_limit: int = Field(
        default=2 * 2**30, ge=0, description="bytes of decoded pictures kept in memory, else on demand"
    )
    verify: bool = Field(
        default=True,
        description="larger sets: decode and hash every picture once at the start; false checks headers alone",
    )


class _Usable(NamedTuple):
    entry: Entry
    path: Path
    contents: str  # sha256 of the file, or its size where verify is off


@dataclass(frozen=True, eq=False)
class _OnDemand:
    records: Sequence[Record]
    classes: Sequence[str]
    fingerprint: str
    paths: Sequence[Path]
    config: FolderConfig

    @property
    def resolution(self) -> int:
        return self.config.resolution

    @property
    def channels(self) -> int:
        return self.config.channels

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        return _decode(self.paths[index], self.config)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        shape = (0, self.channels, self.resolution, self.resolution)
        pictures = [self.picture(int(i)) for i in indices]
        return torch.stack(pictures) if pictures else torch.empty(shape, dtype=torch.uint8)


def load(config: FolderConfig) -> Split:
    """Load the training and held-out pictures of a folder, split by a hash of each picture's name.

    Raises:
        UserError: no such folder, invalid or mixed layout, nothing usable, more bad pictures than allowed, (with
            on_bad: raise) the first bad one, or no picture left to train on.
    """
    return heldout_split(load_all(config), config.heldout, config.path)


def load_all(config: FolderConfig) -> PictureSet:
    """Load all usable pictures of a folder, sorted by name: in memory, or on demand above `memory_limit` bytes.

    Raises:
        UserError: as for `load`.
    """
    entries = folder_entries(config.path)
    size = config.channels * config.resolution**2
    pixels = None
    if len(entries) * size <= config.memory_limit:
        pixels = torch.empty(len(entries), config.channels, config.resolution, config.resolution, dtype=torch.uint8)
    profiles = ProfileCounts()
    usable = _check_all(entries, config, pixels, profiles)
    classes = class_names(picture.entry.label for picture in usable)
    records = [_record(picture.entry, classes) for picture in usable]
    fingerprint = _fingerprint(config, usable, profiles)
    if pixels is None:
        return _OnDemand(records, classes, fingerprint, [picture.path for picture in usable], config)
    return InMemory(records, classes, pixels[: len(usable)], fingerprint)


def _check_all(
    entries: Sequence[Entry], config: FolderConfig, pixels: Tensor | None, profiles: ProfileCounts
) -> list[_Usable]:
    """Check every picture, and fill the first rows of `pixels` (if given) with the usable ones, in order."""
    usable: list[_Usable] = []
    complaints: list[str] = []
    for entry in tqdm(entries, f"reading {config.path.name}", disable=None):
        try:
            path = resolve_inside(config.path, entry.name)
            profile = check_header(path, config.pixel_limit)
            picture = _decode(path, config) if config.verify or pixels is not None else None
        except BadPicture as error:
            complaints.append(f"{entry.name}: {error.reason}")
            skip_or_raise(complaints[-1], config)
            continue
        if pixels is not None and picture is not None:
            pixels[len(usable)] = picture
        profiles.add(entry.name, profile)
        usable.append(_Usable(entry, path, _content_hash(path, config.verify or pixels is not None)))
    check_bad_share(complaints, len(entries), config)
    profiles.log(config.path, len(usable))
    return usable


def _decode(path: Path, config: FolderConfig) -> Tensor:
    return load_image(path, config.resolution, config.channels, config.background, config.pixel_limit)


def _content_hash(path: Path, hash_contents: bool) -> str:
    if not hash_contents:
        return str(path.stat().st_size)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(entry: Entry, classes: Sequence[str]) -> Record:
    label = None if entry.label is None else classes.index(entry.label)
    return Record(entry.name, entry.text, label, entry.fields)


def _fingerprint(config: FolderConfig, pictures: Sequence[_Usable], profiles: ProfileCounts) -> str:
    settings = ["folder", "code=1", str(config.resolution), str(config.channels), config.background]
    settings += profiles.settings
    return digest([*settings, *(text for picture in pictures for text in (picture.entry.name, picture.contents))])
