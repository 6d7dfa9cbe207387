"""Cached index of a large folder: its pictures' names, captions, classes and hashes, as memory-mapped arrays."""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from ldm_kit.data import atomic
from ldm_kit.data.colour_profiles import Profile, ProfileCounts
from ldm_kit.data.records import BLOCK, Array, Labels, Records, Strings

CODE_VERSION = "1"  # raise it whenever the contents of an index change
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}
_log = logging.getLogger("ldm_kit.data")


class FolderIndex(NamedTuple):
    """Cached list of the N usable pictures of a folder, sorted by name, with what the check of each file found."""

    records: Records  # name, caption, class and further metadata of each picture
    classes: Sequence[str]  # class names that `Record.label` indexes
    files: Array  # int64 [N, 2]: size in bytes and time of change in nanoseconds of each file
    hashes: Array  # uint8 [N, 32]: sha256 of each file, zeros if it was not read
    profile_ids: Array  # int32 [N]: 1 + index into `profiles`, 0 for a picture without a profile
    profiles: Sequence[Profile]  # the distinct colour profiles
    complaints: Sequence[str]  # for each picture that cannot be used, its name and why
    stamp: str  # hash of names, sizes and change times of the folder's files (`folder_stamp`); "": list incomplete

    def profile_of(self, row: int) -> Profile | None:
        """Return the colour profile of the picture at index `row`; None if it has none, or one equivalent to sRGB."""
        number = int(self.profile_ids[row])
        return self.profiles[number - 1] if number else None

    def profile_counts(self) -> ProfileCounts:
        """Return how many pictures have each usable colour profile, and which have a profile that cannot be used."""
        counts = ProfileCounts()
        for row in np.flatnonzero(self.profile_ids).tolist():
            counts.add(self.records.names[row], self.profile_of(row))
        return counts

    def contents_hashes(self) -> Iterator[str]:
        """Yield the sha256 (hex) of each picture's file, in the order of `records`."""
        for first in range(0, len(self.hashes), BLOCK):
            text = self.hashes[first : first + BLOCK].tobytes().hex()
            yield from (text[i : i + 64] for i in range(0, len(text), 64))


def folder_stamp(root: Path) -> tuple[str, int]:
    """Return a hash of names, sizes and times of change of all files below a folder, and the number of files.

    The hash tells whether the folder has changed since a list of its pictures was cached.
    """
    state, count = hashlib.sha256(), 0
    for name, size, changed in _files(str(root)):
        count += 1
        state.update(f"{name}\0{size}\0{changed}\0".encode("utf-8", "surrogateescape"))
    return state.hexdigest(), count


def _files(root: str) -> Iterator[tuple[str, int, int]]:
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{folder}{entry.name}/")
                continue
            try:
                stat = entry.stat()
            except OSError:  # a link to nothing
                yield f"{folder}{entry.name}", -1, 0
            else:
                yield f"{folder}{entry.name}", stat.st_size, stat.st_mtime_ns


def write(path: Path, index: FolderIndex) -> None:
    """Write a folder's list of pictures as the safetensors file `path`; raises OSError if it cannot be written."""
    records = index.records
    arrays = {
        "labels": records.labels.values,
        "files": index.files,
        "hashes": index.hashes,
        "profiles": index.profile_ids,
    }
    for name, strings in (("names", records.names), ("texts", records.texts), ("fields", records.fields)):
        arrays |= {name: strings.buffer, f"{name}_ends": strings.ends}
    metadata = {
        "stamp": index.stamp,
        "classes": json.dumps(index.classes),
        "complaints": json.dumps(index.complaints),
        "profiles": json.dumps(index.profiles),
        "checksum": _checksum(arrays),
    }
    atomic.write(path, save(arrays, metadata))


def read(path: Path) -> FolderIndex | None:
    """Return a folder's list of pictures from `path`, a file that `write` has made, with arrays memory-mapped.

    Returns:
        The list; None if there is no such file, or (with a warning) if the file is damaged.
    """
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        metadata = header.pop("__metadata__")
        arrays = {name: _mapped(path, start, entry) for name, entry in header.items()}
        if _checksum(arrays) != metadata["checksum"]:
            raise ValueError("its checksum differs")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("the index %s is damaged (%s) and is made again", path, error)
        return None
    names, texts, fields = (Strings(arrays[n], arrays[f"{n}_ends"]) for n in ("names", "texts", "fields"))
    records = Records(names, texts, Labels(arrays["labels"]), fields)
    classes, complaints = json.loads(metadata["classes"]), json.loads(metadata["complaints"])
    profiles = [Profile(*profile) for profile in json.loads(metadata["profiles"])]
    files, hashes, profile_ids = (arrays[name] for name in ("files", "hashes", "profiles"))
    return FolderIndex(records, classes, files, hashes, profile_ids, profiles, complaints, metadata["stamp"])


def _mapped(path: Path, start: int, entry: Mapping[str, Any]) -> Array:
    """Memory-map an array of a safetensors file.

    Args:
        path: the file.
        start: offset in bytes at which the file's data begin.
        entry: the array's entry in the file's header: type, shape and offsets in the data.
    """
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if 0 in shape:  # nothing to map
        return np.empty(shape, dtype)
    return np.asarray(
        np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)
    )  # a memmap's slices are slow


def _checksum(arrays: Mapping[str, Array]) -> str:
    state = 0
    for _, values in sorted(arrays.items()):
        state = zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, state)
    return f"{state:08x}"
