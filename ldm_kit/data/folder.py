"""Data source: a folder of pictures, with metadata.jsonl (Hugging Face's imagefolder), class folders or plain images.

metadata.jsonl holds one JSON object per line: file_name (relative to the folder), text, an optional label, and further
fields, kept as strings; metadata.csv has them as columns. Without such a file, sub-folders are classes (the folder's
name is the caption), or the images lie in the folder itself; a caption file beside a picture (`0.txt`) gives its
caption. Folders named train, val and test are splits; in kohya's folder `10_dog`, each picture is of class dog and
counts 10 times in training. All pictures are checked when the folder is loaded (in large folders only once, with the
result cached): bad pictures are logged and skipped, and too many of them stop the run. Small sets are decoded into
memory, pictures of larger sets on demand.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ldm_kit.config import cache_dir
from ldm_kit.data import peers, tensor_cache
from ldm_kit.data.alpha import masked, masked_split
from ldm_kit.data.bad_pictures import check_bad_share, skip_or_raise
from ldm_kit.data.batches import chunks
from ldm_kit.data.buckets import FolderFiles, bucketed, within_crop
from ldm_kit.data.caption_templates import captioned, check_entries
from ldm_kit.data.clipped import warn_clipped
from ldm_kit.data.colour_profiles import Profile, ProfileCounts
from ldm_kit.data.folder_cache import folder_stamp
from ldm_kit.data.folder_check import ROUND, Contents, file_sha256, folder_index
from ldm_kit.data.folder_config import FolderConfig as FolderConfig
from ldm_kit.data.folder_index import folder_entries, resolve_inside, training_entries
from ldm_kit.data.folder_layout import CLASSES
from ldm_kit.data.image_files import BadPicture, check_header, load_image
from ldm_kit.data.images import InMemory, PictureSet, Split, class_names, digest
from ldm_kit.data.metadata import Entry, find_table, without_problems
from ldm_kit.data.percentiles import measured_range
from ldm_kit.data.readable import readable
from ldm_kit.data.records import Numbers, Record, Records, names_of
from ldm_kit.data.splits import named_split, picture_roles, repeated
from ldm_kit.data.value_files import check_values_header, load_levels
from ldm_kit.data.value_range import Percentiles, ValueRange

INDEXED = 2000  # a folder of at least so many files is indexed


class _Usable(NamedTuple):
    entry: Entry  # name, caption and class of a picture
    contents: str  # sha256 of the file, or its size where verify is off


@dataclass(frozen=True, eq=False)
class _OnDemand:
    records: Sequence[Record]
    classes: Sequence[str]
    fingerprint: str
    config: FolderConfig

    @property
    def resolution(self) -> int:
        return self.config.resolution

    @property
    def channels(self) -> int:
        return self.config.stored_channels

    @property
    def value_range(self) -> ValueRange | None:
        return self.config.value_range

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        return _decode(resolve_inside(self.config.path, self.records[index].name), self.config)

    def pictures(self, indices: Sequence[int]) -> Tensor:
        shape = (0, self.channels, self.resolution, self.resolution)
        pictures = [self.picture(int(i)) for i in indices]
        return torch.stack(pictures) if pictures else torch.empty(shape, dtype=self.config.pixel_dtype)


def load(config: FolderConfig) -> Split:
    """Load a folder's pictures, split into training and held-out ones by names of sub-folders or a hash of file names.

    Raises:
        UserError: the folder does not exist, its metadata is invalid, pictures lie beside class folders, no picture is
            usable or left to train on, one is bad (with `on_bad` "raise"), more are bad than allowed, or a range that
            is measured is empty.
    """
    split = _split(with_range(config))
    warn_clipped(split.train, config.path)
    return split


def with_range(config: FolderConfig) -> FolderConfig:
    """Return a config whose `range` is in numbers: percentiles are measured over its training pictures, and cached.

    Raises:
        UserError: see `load`.
    """
    if not isinstance(config.range, Percentiles):
        return config
    unmeasured = config.model_copy(update={"range": ((0.0, 1.0),), "memory_limit": 0})  # decoded on demand
    pairs = measured_range(_split(unmeasured).train, config.range.percentiles, config)
    return config.model_copy(update={"range": pairs})


def _split(config: FolderConfig) -> Split:
    pictures = captioned(_load(config, training=True), config)
    pictures = bucketed(pictures, config, FolderFiles(config.path, pictures.records))
    names = names_of(pictures.records)
    named = picture_roles(names, config.path, CLASSES) if config.layout == "auto" else None
    roles = [None] * len(names) if named is None else named.roles
    split = named_split(pictures, roles, config.heldout, config.path)
    split = repeated(split) if find_table(config.path) is None else split
    split = split if isinstance(pictures, InMemory) else readable(within_crop(split, config), config)
    return masked_split(split, config)


def load_all(config: FolderConfig) -> PictureSet:
    """Load a folder's usable pictures as one set sorted by name; raise UserError if the folder cannot be used."""
    config = with_range(config)
    return masked(_load(config, training=False), config)


def _load(config: FolderConfig, training: bool) -> PictureSet:
    size = config.stored_channels * config.resolution**2 * config.pixel_dtype.itemsize
    stamp, count = peers.from_first(peers.host(), partial(folder_stamp, config.path))
    fits = count * size <= config.memory_limit
    if count >= INDEXED or not fits:
        return _load_indexed(config, training, stamp, fits)
    entries = _entries(config, training)
    pixels = torch.empty(len(entries), config.stored_channels, *[config.resolution] * 2, dtype=config.pixel_dtype)
    profiles = ProfileCounts()
    usable = _check_all(entries, config, pixels, profiles)
    classes = class_names(picture.entry.label for picture in usable)
    labels = {name: number for number, name in enumerate(classes)}
    records = Records.of(picture.entry.record(labels) for picture in usable)
    fingerprint = _fingerprint(config, records, (picture.contents for picture in usable), profiles)
    return InMemory(records, classes, pixels[: len(usable)], fingerprint, config.value_range)


def _entries(config: FolderConfig, training: bool) -> list[Entry]:
    """List a folder's pictures; if `training`, leave out the folder `test` where there is also a folder `val`."""
    values = config.range is not None
    entries = folder_entries(config.path, config.layout, config.captions, config.caption_lines, values=values)
    entries = without_problems(entries, config.path) if config.on_bad_caption == "ignore" else entries
    if not training:
        return entries
    entries = training_entries(entries, config.path)
    check_entries(entries, config)
    return entries


def _load_indexed(config: FolderConfig, training: bool, stamp: str, fits: bool) -> PictureSet:
    """Load a large folder by a cached list of its usable pictures.

    If `training`, pictures in a folder `test` are left out if there is also `val`. `stamp` is a hash of the
    names, sizes and times of change of the folder's files. If the pixels fit in memory (`fits`), they are cached too.
    """
    decode = config.verify or fits
    settings = [config.pixel_limit, decode, config.layout, config.captions, training]
    settings += [config.on_bad_caption] if config.on_bad_caption != "skip" else []
    settings += ["lines"] if config.caption_lines else []
    settings += ["values", config.channels] if config.range is not None else []
    entries, check = partial(_entries, config, training), partial(_contents, config, decode)
    index = folder_index(config.path, [*map(str, settings)], stamp, entries, check)
    for complaint in index.complaints:
        skip_or_raise(complaint, config)
    check_bad_share(index.complaints, len(index.records) + len(index.complaints), config)
    profiles = index.profile_counts()
    profiles.log(config.path, len(index.records))
    contents = index.contents_hashes() if decode else map(str, Numbers(index.files[:, 0]))
    fingerprint = peers.from_first(peers.host(), partial(_fingerprint, config, index.records, contents, profiles))
    pictures = _OnDemand(index.records, index.classes, fingerprint, config)
    if not fits:
        return pictures
    key = tensor_cache.key_of("pixels", fingerprint)
    pixels = tensor_cache.cached(cache_dir() / "pixels", key, lambda: {"pixels": _decode_all(pictures)})["pixels"]
    return InMemory(index.records, index.classes, pixels, fingerprint, config.value_range)


def _contents(config: FolderConfig, decode: bool, name: str) -> Contents | str:
    """Check a picture's header and, if `decode`, pixels; return its size, hash and colour profile, or why it is bad."""
    try:
        path = resolve_inside(config.path, name)
        stat = path.stat()  # before it is read: a change meanwhile is noticed later
        profile = _check(path, config, decode)
    except (BadPicture, OSError, ValueError) as error:
        complaint = f"{name}: {error.reason if isinstance(error, BadPicture) else error}"
        if config.on_bad == "raise":
            skip_or_raise(complaint, config)
        return complaint
    return Contents(stat.st_size, stat.st_mtime_ns, file_sha256(path) if decode else bytes(32), profile)


def _decode_all(pictures: _OnDemand) -> Tensor:
    size, dtype = [pictures.resolution] * 2, pictures.config.pixel_dtype
    pixels = torch.empty(len(pictures), pictures.channels, *size, dtype=dtype)
    for indices in tqdm(chunks(pictures, ROUND), "decoding", disable=None):
        for index, picture in zip(indices, peers.in_threads(pictures.picture, indices), strict=True):
            pixels[index] = picture
    return pixels


def _check_all(entries: Sequence[Entry], config: FolderConfig, pixels: Tensor, counts: ProfileCounts) -> list[_Usable]:
    """Return the usable `entries`, decoded into the first rows of `pixels`; count their colour profiles in `counts`."""
    usable: list[_Usable] = []
    complaints: list[str] = []
    for entry in tqdm(entries, f"reading {config.path.name}", disable=None):
        try:
            if entry.problem:
                raise BadPicture(entry.name, entry.problem)
            path = resolve_inside(config.path, entry.name)
            profile = _check_header(path, config)
            pixels[len(usable)] = _decode(path, config)
        except BadPicture as error:
            complaints.append(f"{entry.name}: {error.reason}")
            skip_or_raise(complaints[-1], config)
        else:
            counts.add(entry.name, profile)
            usable.append(_Usable(entry, file_sha256(path).hex()))
    check_bad_share(complaints, len(entries), config)
    counts.log(config.path, len(usable))
    return usable


def _check(path: Path, config: FolderConfig, decode: bool) -> Profile | None:
    """Check a picture's header, and with `decode` its pixels; return its colour profile."""
    profile = _check_header(path, config)
    if decode:
        _decode(path, config)
    return profile


def _check_header(path: Path, config: FolderConfig) -> Profile | None:
    if config.range is None:
        return check_header(path, config.pixel_limit)
    check_values_header(path, config.channels, config.pixel_limit)
    return None


def _decode(path: Path, config: FolderConfig) -> Tensor:
    if (values := config.value_range) is not None:
        return load_levels(path, config.resolution, config.channels, values, config.pixel_limit)
    settings = config.resolution, config.channels, config.background, config.pixel_limit
    return load_image(path, *settings, alpha=config.alpha == "mask")


def _fingerprint(config: FolderConfig, records: Records, contents: Iterable[str], profiles: ProfileCounts) -> str:
    """Return a hash that identifies the set: of settings, `profiles`, and each picture's name and sha256 or size."""
    settings = ["folder", "code=1", str(config.resolution), str(config.channels), config.background, *profiles.settings]
    settings += ["alpha"] if config.alpha == "mask" else []
    settings += [] if config.value_range is None else ["range", str(config.value_range.pairs)]
    return digest(chain(settings, chain.from_iterable(zip(records.names, contents, strict=True))))
