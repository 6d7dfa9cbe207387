"""Index of a large folder in the cache: names, captions, classes and hashes of its pictures, as arrays to be mapped."""

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

CODE_VERSION = "1"  # of the contents of an index; raise it whenever they change
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}
_log = logging.getLogger("ldm_kit.data")


class FolderIndex(NamedTuple):
    """Usable pictures of a folder, sorted by name."""

    records: Records
    classes: Sequence[str]
    files: Array  # int64 [N, 2]: size and time of change
    hashes: Array  # uint8 [N, 32]
    profile_ids: Array  # int32 [N], of the colour profile: from 1, 0 for none
    profiles: Sequence[Profile]
    complaints: Sequence[str]  # one for each bad picture
    stamp: str  # of all files of the folder; "" while the index is not complete

    def profile_of(self, row: int) -> Profile | None:
        """Return the colour profile of a picture; None if it has none, or one that says sRGB."""
        number = int(self.profile_ids[row])
        return self.profiles[number - 1] if number else None

    def profile_counts(self) -> ProfileCounts:
        """Count the pictures of each profile."""
        counts = ProfileCounts()
        for row in np.flatnonzero(self.profile_ids).tolist():
            counts.add(self.records.names[row], self.profile_of(row))
        return counts

    def contents_hashes(self) -> Iterator[str]:
        """Yield the hash of each picture's file, in hex."""
        for first in range(0, len(self.hashes), BLOCK):
            text = self.hashes[first : first + BLOCK].tobytes().hex()
            yield from (text[i : i + 64] for i in range(0, len(text), 64))


def folder_stamp(root: Path) -> tuple[str, int]:
    """Return a hash of the names, sizes and times of change of all files below a folder, and how many there are."""
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
    """Write an index; raises OSError if it cannot be written."""
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
    """Return a stored index, its arrays mapped; None if there is none, or (with a warning) if it is damaged."""
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
    """Map an array of a safetensors file, of which an entry in the header tells type, shape and place."""
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
