"""Check and hash every picture of a large folder once, and keep the result as an index in the cache.

The first start checks and hashes every picture, in all threads of all processes on a machine. Later starts compare the
names, sizes and times of change of all files with those in the index, and check again only what has changed. An
incomplete index is kept too, so that a start that was interrupted can be continued.
"""

import contextlib
import hashlib
import logging
import os
import time
from array import array
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ldm_kit.config import cache_dir
from ldm_kit.data import peers
from ldm_kit.data.colour_profiles import Profile
from ldm_kit.data.folder_cache import CODE_VERSION, FolderIndex, read, write
from ldm_kit.data.images import class_names, digest
from ldm_kit.data.metadata import Entry
from ldm_kit.data.records import UNLABELLED, Labels, Records, StringBuilder, stored_json

ROUND = 16384  # pictures that the processes check before they exchange results
KEEP_EVERY = 60.0  # seconds between saves of an incomplete index
_log = logging.getLogger("ldm_kit.data")


class Contents(NamedTuple):
    """What the check of a picture's file found."""

    size: int  # bytes
    changed: int  # time of the last change, in nanoseconds
    sha256: bytes  # hash of the file; zeros if only the header was read
    profile: Profile | None  # colour profile; None: there is none, or one equivalent to sRGB


Check = Callable[[str], Contents | str]  # name of a picture -> its contents, or a message that says why it is bad


def folder_index(
    root: Path, settings: Sequence[str], stamp: str, entries: Callable[[], Sequence[Entry]], check: Check
) -> FolderIndex:
    """Return the list of a folder's usable pictures: the cached one if no file has changed, else a new one.

    The processes on one machine check the pictures together; files that have not changed are not checked again.

    Args:
        root: the folder.
        settings: texts of all settings that a check's result depends on; each combination has its own cached list.
        stamp: hash of the names, sizes and times of change of all files in the folder (`folder_stamp`).
        entries: function that lists all pictures in the folder, sorted by name.
        check: function that checks one picture, given its name, and returns the file's size, time of change, hash and
            colour profile (`Contents`), or a message if the picture is bad.

    Raises:
        UserError: `entries` or `check` has raised a UserError, in this process or another.
    """
    group, key = peers.host(), digest([CODE_VERSION, str(root.resolve()), *settings])
    path = cache_dir() / "folders" / f"{key[:32]}.safetensors"
    stored = read(path)
    fresh = peers.agreed(group, lambda: stored is not None and stored.stamp == stamp)
    if stored is not None and all(fresh):
        return stored
    builder = _Builder(root, stamp, path, entries)
    results: list[Contents | str] | None = None
    while (names := peers.from_first(group, partial(builder.advance, results))) is not None:
        shares = peers.agreed(group, partial(_check_all, names[group.rank :: group.size], check))
        results = [shares[i % group.size][i // group.size] for i in range(len(names))]
    made = peers.from_first(group, builder.finish)  # None if it lies in the cache now
    stored = made or read(path)
    assert stored is not None
    return stored


def _check_all(names: Sequence[str], check: Check) -> list[Contents | str]:
    return list(peers.in_threads(check, names))


def file_sha256(path: Path) -> bytes:
    """Return the sha256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class _Builder:
    """Builder of the list of a folder's usable pictures: it names those to check, and takes what the checks found.

    Of the processes on a machine, only the first one uses its builder.

    Args:
        root: the folder.
        stamp: hash of names, sizes and times of change of the folder's files, which the list stores.
        path: the list's file in the cache.
        entries: function that lists all pictures in the folder, sorted by name.
    """

    def __init__(self, root: Path, stamp: str, path: Path, entries: Callable[[], Sequence[Entry]]) -> None:
        self.root, self.stamp, self.path, self.entries = root, stamp, path, entries
        self.part = path.with_suffix(".part")  # as far as it goes
        self.old = [_Cursor(index) for index in map(read, (path, self.part)) if index is not None]
        self.names, self.texts, self.fields = StringBuilder(), StringBuilder(), StringBuilder()
        self.labels, self.files, self.hashes = array("i"), array("q"), bytearray()
        self.profile_ids = array("i")
        self.profiles: dict[Profile | None, int] = {None: 0}
        self.classes: dict[str, int] = {}
        self.complaints: list[str] = []
        self.rounds, self.kept = self._rounds(), time.monotonic()

    def advance(self, results: list[Contents | str] | None) -> list[str] | None:
        """Return the names of the pictures to check next; None if none are left.

        `results` holds, for each name that the last call returned, what its check found; None in the first call.
        """
        try:
            return self.rounds.send(results)
        except StopIteration:
            return None

    def finish(self) -> FolderIndex | None:
        """Write the complete `FolderIndex` to the cache and return None; return the index if writing fails."""
        index = self._index(self.stamp)
        try:
            write(self.path, index)
        except OSError as error:
            _log.warning("cannot keep an index in %s (%s); it will be made again", self.path.parent, error.strerror)
            return index
        with contextlib.suppress(OSError):
            self.part.unlink(missing_ok=True)
        return None

    def _rounds(self) -> Generator[list[str], list[Contents | str] | None]:
        entries = self.entries()
        with tqdm(total=len(entries), desc=f"checking {self.root.name}", disable=None) as bar:
            for first in range(0, len(entries), ROUND):
                chunk = entries[first : first + ROUND]
                unchanged = [self._unchanged(entry.name) for entry in chunk]
                unknown = [entry.name for entry, contents in zip(chunk, unchanged, strict=True) if contents is None]
                checked = iter(((yield unknown) or []) if unknown else [])
                for entry, contents in zip(chunk, unchanged, strict=True):
                    self._add(entry, contents or next(checked))
                bar.update(len(chunk))
                self._keep()

    def _unchanged(self, name: str) -> Contents | None:
        """Return what an earlier check found of the picture `name`; None if there was none or the file has changed."""
        stored = [contents for cursor in self.old if (contents := cursor.find(name)) is not None]
        if not stored:
            return None
        try:
            stat = os.stat(self.root / name)
        except (OSError, ValueError):
            return None
        return next((c for c in stored if (c.size, c.changed) == (stat.st_size, stat.st_mtime_ns)), None)

    def _add(self, entry: Entry, contents: Contents | str) -> None:
        complaint = f"{entry.name}: {entry.problem}" if entry.problem else contents
        if isinstance(complaint, str):
            self.complaints.append(complaint)
            return
        contents = complaint
        self.names.add(entry.name)
        self.texts.add(entry.text)
        self.fields.add(stored_json(entry.fields, entry.others))
        label = UNLABELLED if entry.label is None else self.classes.setdefault(entry.label, len(self.classes))
        self.labels.append(label)
        self.files.extend((contents.size, contents.changed))
        self.hashes += contents.sha256
        self.profile_ids.append(self.profiles.setdefault(contents.profile, len(self.profiles)))

    def _keep(self) -> None:
        """Save the list of pictures checked so far if KEEP_EVERY (60) seconds have passed since it was last saved."""
        if time.monotonic() - self.kept > KEEP_EVERY:
            with contextlib.suppress(OSError):
                write(self.part, self._index(""))
            self.kept = time.monotonic()

    def _index(self, stamp: str) -> FolderIndex:
        classes = class_names(self.classes)
        numbers = {name: number for number, name in enumerate(classes)}
        order = np.array([*(numbers[name] for name in self.classes), UNLABELLED], np.int32)  # the last: for -1
        labels = Labels(order[np.array(self.labels, np.int32)])
        records = Records(self.names.strings(), self.texts.strings(), labels, self.fields.strings())
        files = np.array(self.files, np.int64).reshape(-1, 2)
        hashes = np.array(self.hashes, np.uint8).reshape(-1, 32)
        ids, profiles = np.array(self.profile_ids, np.int32), [profile for profile in self.profiles if profile]
        return FolderIndex(records, classes, files, hashes, ids, profiles, self.complaints, stamp)


class _Cursor:
    """Lookup of pictures in `index`, an older list, in one pass: call `find` with names in increasing order."""

    def __init__(self, index: FolderIndex) -> None:
        self.index, self.names, self.row = index, iter(index.records.names), -1
        self.name: str | None = ""

    def find(self, name: str) -> Contents | None:
        """Return what the older list says about the picture `name`; None if the list lacks this picture."""
        while self.name is not None and (self.row < 0 or self.name < name):
            self.name, self.row = next(self.names, None), self.row + 1
        if self.name != name:
            return None
        size, changed = self.index.files[self.row].tolist()
        profile = self.index.profile_of(self.row)
        return Contents(size, changed, self.index.hashes[self.row].tobytes(), profile)
