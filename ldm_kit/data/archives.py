"""Pictures that lie many to a file (tar shards, parquet): looked at once, then read one by one wherever they lie.

The first run over a file checks and hashes every picture in it and writes down where each lies. This index is kept in
the cache under the file's path, size and time of change, so that later runs start at once, and any picture can be read
at any moment: the order of training is the addressed one, without a shuffle buffer.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import Config, UserError, cache_dir
from ldm_kit.data import atomic
from ldm_kit.data.file_patterns import find_files
from ldm_kit.data.folder import class_names, judge, refuse
from ldm_kit.data.folder_index import Entry
from ldm_kit.data.image_files import PIXEL_LIMIT, BadPicture, Colour, Encoded, check_header, load_image
from ldm_kit.data.images import Record, Split, digest, split_off, subset

_log = logging.getLogger("ldm_kit.data")
CODE_VERSION = 1  # raise it whenever what an index says changes


class PackedConfig(Config):
    """What all sources of this kind can be told."""

    path: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        description="a folder of shards, one shard, or a pattern such as shards/{00000..00099}.tar"
    )
    resolution: int = Field(
        default=32, ge=8, le=2048, description="pixels along each side after scaling and centre crop"
    )
    channels: Literal[1, 3, 4] = Field(default=3, description="1 grey, 3 RGB, 4 RGBA")
    background: Colour = Field(default="white", description="colour laid under transparent pictures: a name or #rrggbb")
    fields: tuple[str, ...] = Field(default=(), description="further values of a sample to keep beside text and label")
    heldout: float = Field(default=0.05, ge=0, lt=1, description="share held out, by a hash of each picture's name")
    on_bad: Literal["skip", "raise"] = Field(
        default="skip", description="what to do with a picture that cannot be read"
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="stop if more is bad; above 0, one bad picture is always allowed"
    )
    pixel_limit: int = Field(
        default=PIXEL_LIMIT, ge=1, le=89_478_485, description="most pixels an image's header may promise, checked first"
    )
    verify: bool = Field(default=True, description="decode every picture once, for the index; false: headers alone")
    cache: Path | None = Field(
        default=None, description="folder for the indexes; default: the variable LDM_KIT_CACHE, else ~/.cache/ldm_kit"
    )


class Offer(NamedTuple):
    """A sample as its file offers it: named within that file, with its place there and the picture's file."""

    entry: Entry
    place: tuple[int, int]
    contents: bytes


class Reader(Protocol):
    """How one kind of file is read; `kind` and all settings that change an index are in `key`."""

    @property
    def key(self) -> Sequence[str]:
        """What an index depends on beside the file."""
        ...

    def scan(self, path: Path) -> Iterator[Offer | str]:
        """Every sample in the file's order, and a complaint for each that cannot be offered."""
        ...

    def read(self, path: Path, place: tuple[int, int]) -> bytes:
        """The picture's file at a place that `scan` told."""
        ...


# Of a million samples each object counts: name in its file, text, class, further values, place in the file, sha256.
_Row = tuple[str, str, str | None, Mapping[str, str], Sequence[int], str]
_NOTHING: Mapping[str, str] = {}  # one for all


class _Index(NamedTuple):
    rows: list[_Row]
    bad: list[str]


@dataclass(frozen=True, eq=False)
class Packed:
    """A picture set whose pictures are read and decoded whenever they are asked for."""

    records: Sequence[Record]
    classes: Sequence[str]
    fingerprint: str
    files: Sequence[Path]
    places: Tensor  # [N, 3] int64: number of the file, and the place there
    reader: Reader
    config: PackedConfig

    @property
    def resolution(self) -> int:
        """R, pixels along each side."""
        return self.config.resolution

    @property
    def channels(self) -> int:
        """C: 1 grey, 3 RGB, 4 RGBA."""
        return self.config.channels

    def __len__(self) -> int:
        return len(self.places)

    def picture(self, index: int) -> Tensor:
        """One picture, uint8 [C, R, R]; raises BadPicture where `verify` was off and the picture is broken."""
        file, *place = self.places[index].tolist()
        contents = self.reader.read(self.files[file], (place[0], place[1]))
        wanted = self.config
        encoded = Encoded(self.records[index].name, contents)
        return load_image(encoded, wanted.resolution, wanted.channels, wanted.background, wanted.pixel_limit)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Several pictures, uint8 [N, C, R, R], read in the order in which they lie."""
        wanted = [int(i) for i in indices]
        pixels = torch.empty(len(wanted), self.channels, self.resolution, self.resolution, dtype=torch.uint8)
        for row in sorted(range(len(wanted)), key=lambda row: self.places[wanted[row]].tolist()):
            pixels[row] = self.picture(wanted[row])
        return pixels


def load(config: PackedConfig, reader: Reader, suffix: str) -> Split:
    """Train and heldout parts of all files with a suffix (compositional is None), split as folders are.

    Raises:
        UserError: no such files, files of another kind, nothing usable, more bad pictures than allowed, or (with
            on_bad: raise) the first bad one.
    """
    files = find_files(config.path, suffix)
    indexes: dict[str, _Index] = {}
    for name, path in tqdm(files.items(), f"reading {config.path.name}", disable=None):
        indexes[name] = _indexed(path, reader, config)
    count, bad = 0, []
    for name, index in indexes.items():
        count += len(index.rows) + len(index.bad)
        bad += [f"{name}/{complaint}" for complaint in index.bad]
    for complaint in bad:
        refuse(complaint, config)
    if not count:
        raise UserError(f"{config.path} offers no pictures in its {len(files)} {suffix} files")
    judge(bad, count, config)
    whole = _assembled(indexes, list(files.values()), reader, config)
    kept, held = split_off(whole.records, config.heldout)
    return Split(subset(whole, kept), subset(whole, held), None)


def _assembled(indexes: Mapping[str, _Index], files: Sequence[Path], reader: Reader, config: PackedConfig) -> Packed:
    classes = class_names({row[2] for index in indexes.values() for row in index.rows})
    numbers = {None: None, **{name: number for number, name in enumerate(classes)}}
    records: list[Record] = []
    places: list[Tensor] = []
    contents: list[str] = []
    for number, (name, index) in enumerate(indexes.items()):
        for member, text, label, fields, _, sha256 in index.rows:
            records.append(Record(f"{name}/{member}", text, numbers[label], fields or _NOTHING))
            contents.append(sha256)
        places.append(torch.tensor([(number, *row[4]) for row in index.rows], dtype=torch.long).view(-1, 3))
    settings = ["packed", f"code={CODE_VERSION}", str(config.resolution), str(config.channels), config.background]
    known = chain.from_iterable((record.name, sha256) for record, sha256 in zip(records, contents, strict=True))
    return Packed(records, classes, digest([*settings, *known]), files, torch.cat(places), reader, config)


def _indexed(path: Path, reader: Reader, config: PackedConfig) -> _Index:
    """What is known of a file, from the cache if it has not changed since."""
    stat = path.stat()
    about = [str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns), str(config.pixel_limit), str(config.verify)]
    root = config.cache or cache_dir()
    place = root / "shards" / f"{digest([f'code={CODE_VERSION}', *reader.key, *about])[:32]}.json"
    index = _recalled(place)
    if index is None:
        index = _scanned(path, reader, config)
        _remember(place, index)
    return index


def _scanned(path: Path, reader: Reader, config: PackedConfig) -> _Index:
    index = _Index([], [])
    for found in reader.scan(path):
        if isinstance(found, str):
            index.bad.append(found)
            continue
        encoded = Encoded(found.entry.name, found.contents)
        try:
            check_header(encoded, config.pixel_limit)
            if config.verify:
                load_image(encoded, 8, pixel_limit=config.pixel_limit)
        except BadPicture as error:
            index.bad.append(f"{found.entry.name}: {error.reason}")
        else:
            entry, sha256 = found.entry, hashlib.sha256(found.contents).hexdigest()
            index.rows.append((entry.name, entry.text, entry.label, entry.fields, found.place, sha256))
    return index


def _recalled(place: Path) -> _Index | None:
    try:
        checksum, _, text = place.read_text(encoding="ascii").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError("its checksum differs")
        return _Index(*json.loads(text))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("the index %s is damaged (%s) and is made again", place, error)
        return None


def _remember(place: Path, index: _Index) -> None:
    text = json.dumps(index)
    try:
        atomic.write(place, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode("ascii"))
    except OSError as error:
        _log.warning("cannot keep an index under %s (%s); it will be made again", place.parent, error.strerror)
