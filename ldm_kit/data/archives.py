"""Archives that hold many pictures (tar shards, parquet files): indexed once, then read picture by picture.

The first run over a file checks and hashes every picture in it, and stores an index of the pictures' locations. The
index is cached under the file's path, size and time of change, so that later runs start at once. As pictures can be
read in any order, training needs no shuffle buffer: samples are ordered as those of any other data source.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import UserError, cache_dir
from ldm_kit.data import peers
from ldm_kit.data.alpha import AlphaConfig, masked_split
from ldm_kit.data.archive_rows import ArchiveReader, Index, Row, Rows, read_index, write_index
from ldm_kit.data.bad_pictures import check_bad_share, skip_or_raise
from ldm_kit.data.buckets import ArchiveFiles, BucketedConfig, bucketed, within_crop
from ldm_kit.data.caption_templates import captioned
from ldm_kit.data.colour_profiles import Profile, ProfileCounts
from ldm_kit.data.file_patterns import find_files
from ldm_kit.data.image_files import PIXEL_LIMIT, BadPicture, Colour, Encoded, check_header, load_image
from ldm_kit.data.images import Record, Split, class_names, digest
from ldm_kit.data.readable import readable
from ldm_kit.data.records import Records, record_of, stored
from ldm_kit.data.splits import Role, named_files, named_members, named_split

CODE_VERSION = 1  # part of a picture set's fingerprint; raise it whenever pixels or records change
INDEX_VERSION = 3  # raise it whenever the contents of an index change


class ArchiveConfig(BucketedConfig, AlphaConfig):
    """Options shared by the data sources that read archives of pictures (tar shards, parquet files)."""

    path: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        description="a folder of shards, one shard, or a pattern such as shards/{00000..00099}.tar"
    )
    resolution: int = Field(
        default=32, ge=8, le=2048, description="pixels along each side after scaling and centre crop"
    )
    channels: Literal[1, 3, 4] = Field(default=3, description="1 grey, 3 RGB, 4 RGBA")
    background: Colour = Field(default="white", description="colour laid under transparent pictures: a name or #rrggbb")
    fields: tuple[str, ...] = Field(default=(), description="further values of a sample to keep beside text and label")
    heldout: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share held out, by a hash of each picture's name; not used if splits are named",
    )
    named_splits: bool = Field(
        default=True, description="files or folders named train, val and test are that split; false: all are one set"
    )
    on_bad: Literal["skip", "raise"] = Field(default="skip", description="what an unreadable picture leads to")
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="stop if a larger share is bad; above 0, one bad picture always passes"
    )
    pixel_limit: int = Field(
        default=PIXEL_LIMIT, ge=1, le=89_478_485, description="most pixels that an image may have by its header"
    )
    verify: bool = Field(
        default=True,
        description="decode all pictures once, for the index; false: check headers, skip pictures that break later",
    )
    cache: Path | None = Field(
        default=None, description="folder for the indexes; default: the variable LDM_KIT_CACHE, else ~/.cache/ldm_kit"
    )

    @property
    def columns(self) -> Sequence[str]:
        """Names of the values that a caption template can use: those in `fields`."""
        return self.fields


@dataclass(frozen=True, eq=False)
class ArchivedPictures:
    """Picture set whose pictures are read from archives (tar shards, parquet files) and decoded on demand."""

    records: Sequence[Record]  # name, caption, class and further values of each of the N pictures
    classes: Sequence[str]  # class names that `Record.label` indexes
    fingerprint: str  # sha256 (hex) of preprocessing settings, and of every picture's name and contents
    files: Sequence[Path]  # the archives
    locations: Tensor  # int64 [N, 3]: index into `files`, and the location in that file (two numbers)
    reader: ArchiveReader  # reads pictures from this kind of archive
    config: ArchiveConfig  # resolution, channels, background and further options

    @property
    def resolution(self) -> int:
        """Pixels along each side of a picture, R."""
        return self.config.resolution

    @property
    def channels(self) -> int:
        """Channels of a picture, C: 1 grey, 3 RGB, 4 RGBA; one more for alpha as mask."""
        return self.config.stored_channels

    def __len__(self) -> int:
        return len(self.locations)

    def picture(self, index: int) -> Tensor:
        """Read and decode the picture at `index`, uint8 [C, R, R]: C channels, R x R pixels.

        Raises:
            BadPicture: the picture is broken; this was not noticed before because `config.verify` was off.
        """
        file, *location = self.locations[index].tolist()
        contents = self.reader.read(self.files[file], (location[0], location[1]))
        encoded, config = Encoded(self.records[index].name, contents), self.config
        settings = config.resolution, config.channels, config.background, config.pixel_limit
        return load_image(encoded, *settings, alpha=config.alpha == "mask")

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Return the N pictures at `indices`, uint8 [N, C, R, R]: C channels, R x R pixels, read archive by archive."""
        numbers = [int(i) for i in indices]
        pixels = torch.empty(len(numbers), self.channels, self.resolution, self.resolution, dtype=torch.uint8)
        for row in sorted(range(len(numbers)), key=lambda row: self.locations[numbers[row]].tolist()):
            pixels[row] = self.picture(numbers[row])
        return pixels


def load(config: ArchiveConfig, reader: ArchiveReader, suffix: str) -> Split:
    """Load the training and held-out pictures of all archives at `config.path`.

    `reader` reads this kind of archive; `suffix`, such as `.tar`, is that of the archives' file names.

    Raises:
        UserError: no archive of this kind is found; no picture is usable or left to train on; a picture cannot be read
            and `on_bad` is "raise"; or more pictures cannot be read than `max_bad_share` allows.
    """
    files = find_files(config.path, suffix)
    roles = named_files(files, config.path) if config.named_splits else dict.fromkeys(files)
    if peers.everyone().size > 1:
        missing = partial(_not_indexed, [files[name] for name in roles], reader, config)
        peers.make_missing(missing, lambda path: _cached_index(path, reader, config))
    indexes: dict[str, Index] = {}
    for name in tqdm(roles, f"reading {config.path.name}", disable=None):
        indexes[name] = _cached_index(files[name], reader, config)
    complaints = [f"{name}/{complaint}" for name, index in indexes.items() for complaint in index.bad]
    total = sum(len(index.rows) + len(index.bad) for index in indexes.values())
    for complaint in complaints:
        skip_or_raise(complaint, config)
    if not total:
        raise UserError(f"{config.path} offers no pictures in its {len(files)} {suffix} files")
    check_bad_share(complaints, total, config)
    profiles = ProfileCounts()
    for name, index in indexes.items():
        for member, profile, problem in index.profiles:
            profiles.add(f"{name}/{member}", Profile(profile, problem))
    profiles.log(config.path, total - len(complaints))
    row_roles: list[Role | None] = [role for name, role in roles.items() for _ in indexes[name].rows]
    if config.named_splits and not any(row_roles):
        row_roles = named_members([row[0] for index in indexes.values() for row in index.rows], config.path)
    paths, settings = [files[name] for name in roles], profiles.settings
    pictures = _picture_set(indexes, paths, row_roles, reader, config, profile_settings=settings)
    shaped = bucketed(captioned(pictures, config), config, ArchiveFiles(pictures))
    split = named_split(shaped, row_roles, config.heldout, config.path)
    return masked_split(readable(within_crop(split, config), config), config)


def _picture_set(
    indexes: Mapping[str, Index],
    files: Sequence[Path],
    roles: Sequence[Role | None],
    reader: ArchiveReader,
    config: ArchiveConfig,
    *,
    profile_settings: Sequence[str],
) -> ArchivedPictures:
    rows = chain.from_iterable(index.rows for index in indexes.values())
    classes = class_names({row[2] for row, role in zip(rows, roles, strict=True) if role in (None, "train")})
    labels = {name: number for number, name in enumerate(classes)}
    locations = [
        torch.tensor([(number, *row[4]) for row in index.rows], dtype=torch.long).view(-1, 3)
        for number, index in enumerate(indexes.values())
    ]
    records = Records.of(
        record_of(f"{name}/{member}", text, None if label is None else labels.get(label), fields)
        for name, index in indexes.items()
        for member, text, label, fields, _, _ in index.rows
    )
    hashes = (row[5] for index in indexes.values() for row in index.rows)
    settings = ["packed", f"code={CODE_VERSION}", str(config.resolution), str(config.channels), config.background]
    settings += [*profile_settings, *(["alpha"] if config.alpha == "mask" else [])]
    fingerprint = digest(chain(settings, chain.from_iterable(zip(records.names, hashes, strict=True))))
    return ArchivedPictures(records, classes, fingerprint, files, torch.cat(locations), reader, config)


def _cached_index(path: Path, reader: ArchiveReader, config: ArchiveConfig) -> Index:
    """Return the cached list of an archive's pictures; if there is none for this `config`, make it with `reader`."""
    index_path = _index_path(path, reader, config)
    index = read_index(index_path)
    if index is None:
        index = _scan(path, reader, config)
        write_index(index_path, index)
    return index


def _not_indexed(paths: Sequence[Path], reader: ArchiveReader, config: ArchiveConfig) -> list[Path]:
    return [path for path in paths if not _index_path(path, reader, config).exists()]


def _index_path(path: Path, reader: ArchiveReader, config: ArchiveConfig) -> Path:
    stat = path.stat()
    file = [str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns), str(config.pixel_limit), str(config.verify)]
    root = config.cache or cache_dir()
    return root / "shards" / f"{digest([f'code={INDEX_VERSION}', *reader.key, *file])[:32]}.json"


def _scan(path: Path, reader: ArchiveReader, config: ArchiveConfig) -> Index:
    """List the usable and bad pictures that `reader` finds; check all headers and, if `config.verify`, all pixels."""
    rows: list[Row] = []
    bad: list[str] = []
    profiles: list[tuple[str, str, str]] = []
    for sample in reader.scan(path):
        if isinstance(sample, str):
            bad.append(sample)
            continue
        entry, encoded = sample.entry, Encoded(sample.entry.name, sample.contents)
        try:
            profile = check_header(encoded, config.pixel_limit)
            if config.verify:
                load_image(encoded, 8, pixel_limit=config.pixel_limit)
        except BadPicture as error:
            bad.append(f"{entry.name}: {error.reason}")
        else:
            sha256 = hashlib.sha256(sample.contents).hexdigest()
            values = stored(entry.fields, entry.others)
            rows.append((entry.name, entry.text, entry.label, values, sample.location, sha256))
            if profile is not None:
                profiles.append((entry.name, profile.name, profile.problem))
    return Index(Rows.of(rows), bad, profiles)
