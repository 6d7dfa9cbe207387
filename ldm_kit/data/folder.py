"""The user's own pictures: a folder with metadata.jsonl (Hugging Face's imagefolder), class folders, or plain images.

metadata.jsonl holds one object a line: file_name (relative to the folder), text, an optional label, and any further
fields, kept as strings. Without it, sub-folders are classes (the caption is the folder's name), or images simply lie
there. Every file is looked at once when the folder is loaded: bad ones are reported by name, counted and skipped, and
too many of them stop the run. Small sets stay decoded in memory, larger ones are decoded whenever they are asked for.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config, UserError
from ldm_kit.data.folder_index import Entry, entries, inside
from ldm_kit.data.image_files import PIXEL_LIMIT, BadPicture, Colour, check_header, load_image
from ldm_kit.data.images import InMemory, PictureSet, Record, Split, digest, split_off, subset

_log = logging.getLogger("ldm_kit.data")


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


class Tolerance(Protocol):
    """What a config says of bad pictures."""

    @property
    def path(self) -> Path: ...
    @property
    def on_bad(self) -> Literal["skip", "raise"]: ...
    @property
    def max_bad_share(self) -> float: ...


class _Found(NamedTuple):
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
        read = [self.picture(int(i)) for i in indices]
        return torch.stack(read) if read else torch.empty(shape, dtype=torch.uint8)


def load(config: FolderConfig) -> Split:
    """Train and heldout parts of a folder (compositional is None), split by a hash of each picture's name.

    Raises:
        UserError: no such folder, faulty or mixed layout, nothing usable, more bad pictures than allowed, or (with
            on_bad: raise) the first bad one.
    """
    pictures = load_all(config)
    kept, held = split_off(pictures.records, config.heldout)
    return Split(subset(pictures, kept), subset(pictures, held), None)


def load_all(config: FolderConfig) -> PictureSet:
    """All usable pictures of a folder, sorted by name. Raises as `load` does."""
    offered = entries(config.path)
    size = config.channels * config.resolution**2
    pixels = None
    if len(offered) * size <= config.memory_limit:
        pixels = torch.empty(len(offered), config.channels, config.resolution, config.resolution, dtype=torch.uint8)
    found = _look(offered, config, pixels)
    classes = class_names({f.entry.label for f in found})
    records = [_record(f.entry, classes) for f in found]
    fingerprint = _fingerprint(config, found)
    if pixels is None:
        return _OnDemand(records, classes, fingerprint, [f.path for f in found], config)
    return InMemory(records, classes, pixels[: len(found)], fingerprint)


def _look(offered: Sequence[Entry], config: FolderConfig, pixels: Tensor | None) -> list[_Found]:
    """Check every picture, filling the first rows of `pixels` (if given) with the usable ones, in order."""
    found: list[_Found] = []
    bad: list[str] = []
    for entry in tqdm(offered, f"reading {config.path.name}", disable=None):
        try:
            path = inside(config.path, entry.name)
            picture = _check(path, config, pixels is not None)
        except BadPicture as error:
            bad.append(f"{entry.name}: {error.reason}")
            refuse(bad[-1], config)
            continue
        if pixels is not None and picture is not None:
            pixels[len(found)] = picture
        found.append(_Found(entry, path, _contents(path, config.verify or pixels is not None)))
    judge(bad, len(offered), config)
    return found


def _check(path: Path, config: FolderConfig, keep: bool) -> Tensor | None:
    if keep or config.verify:
        return _decode(path, config)
    check_header(path, config.pixel_limit)
    return None


def refuse(complaint: str, config: Tolerance) -> None:
    """Say in the log what is skipped, or raise UserError where nothing may be."""
    if config.on_bad == "raise":
        raise UserError(f"bad picture in {config.path}: {complaint}; repair or remove it, or set on_bad: skip")
    _log.warning("skipped %s", complaint)


def judge(bad: Sequence[str], offered: int, config: Tolerance) -> None:
    """Raise UserError where nothing is left, or where too much is bad: a wrong folder or a broken copy, most likely."""
    if len(bad) == offered:
        raise UserError(f"{config.path} holds nothing usable: all {offered} pictures are bad, first {bad[0]}")
    allowed = max(1, int(config.max_bad_share * offered)) if config.max_bad_share > 0 else 0
    if len(bad) > allowed:
        raise UserError(
            f"{len(bad)} of {offered} pictures in {config.path} are bad (max_bad_share {config.max_bad_share} allows"
            f" {allowed}), first {bad[0]}; the log names all"
        )
    if bad:
        _log.warning("skipped %d of %d pictures in %s", len(bad), offered, config.path)


def _decode(path: Path, config: FolderConfig) -> Tensor:
    return load_image(path, config.resolution, config.channels, config.background, config.pixel_limit)


def _contents(path: Path, whole: bool) -> str:
    if not whole:
        return str(path.stat().st_size)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def class_names(labels: Iterable[str | None]) -> list[str]:
    """Class names: in number order if all are numbers, else in the order of the alphabet."""
    names = {label for label in labels if label is not None}
    return sorted(names, key=int if all(name.isdecimal() for name in names) else str)


def _record(entry: Entry, classes: Sequence[str]) -> Record:
    label = None if entry.label is None else classes.index(entry.label)
    return Record(entry.name, entry.text, label, entry.fields)


def _fingerprint(config: FolderConfig, found: Sequence[_Found]) -> str:
    settings = ["folder", "code=1", str(config.resolution), str(config.channels), config.background]
    return digest([*settings, *(part for f in found for part in (f.entry.name, f.contents))])
